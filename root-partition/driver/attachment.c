// SPDX-License-Identifier: GPL-2.0
/*
 * Who is attached to a partition, and the ioctls of a partition's fd.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "attachment.h"
#include "doorbell.h"
#include "hypercall.h"
#include "interrupt.h"
#include "irqfd.h"
#include "memory.h"
#include "partition.h"
#include "vcpu.h"

/* Whether a process has a thread that is not on its way out. */
static bool is_alive(struct pid *process)
{
	struct task_struct *leader;
	bool alive;

	rcu_read_lock();
	leader = pid_task(process, PIDTYPE_TGID);
	/* The leader stays, as a zombie, until the last thread has gone. */
	alive = leader && atomic_read(&leader->signal->live) > 0;
	rcu_read_unlock();
	return alive;
}

static bool has_worker(struct mv_partition *partition)
{
	lockdep_assert_held(&mv_partitions_lock);
	return partition->attachment && is_alive(partition->attachment->worker);
}

bool mv_attached_elsewhere(struct mv_partition *partition)
{
	return has_worker(partition) && partition->attachment->worker != task_tgid(current);
}

u32 mv_attached_worker(struct mv_partition *partition)
{
	return has_worker(partition) ? pid_vnr(partition->attachment->worker) : 0;
}

int mv_attachment_check(struct mv_attachment *attachment)
{
	struct mv_partition *partition = attachment->partition;

	if (mv_partition_ended(partition))
		return -ENODEV;
	if (attachment->worker != task_tgid(current) ||
	    READ_ONCE(partition->attachment) != attachment)
		return -EPERM;
	return 0;
}

/* The last fd was closed. Called with mv_partitions_lock, which it drops. */
static void detach(struct kref *references)
{
	struct mv_attachment *attachment =
		container_of(references, struct mv_attachment, references);
	struct mv_partition *partition = attachment->partition;

	if (partition->attachment == attachment) {
		WRITE_ONCE(partition->attachment, NULL);
		mv_partition_unbind(partition);
	}
	mutex_unlock(&mv_partitions_lock);
	put_pid(attachment->worker);
	kfree(attachment);
	mv_partition_put(partition);
}

void mv_attachment_put(struct mv_attachment *attachment)
{
	kref_put_mutex(&attachment->references, detach, &mv_partitions_lock);
}

static long set_property(struct mv_partition *partition, struct mv_set_property __user *user)
{
	struct mv_set_property set;
	long error;

	if (copy_from_user(&set, user, sizeof(set)))
		return -EFAULT;
	error = mv_partition_lock(partition);
	if (error)
		return error;
	error = mv_call3(MV_CALL_PARTITION_SET, partition->id, set.property, set.value, NULL);
	mv_partition_unlock(partition);
	return error;
}

static long partition_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct mv_attachment *attachment = file->private_data;
	void __user *user = (void __user *)argument;
	struct mv_partition *partition = attachment->partition;
	long error = mv_attachment_check(attachment);

	if (error)
		return error;
	switch (command) {
	case MV_IOCTL_PARTITION_SET_MEMORY:
		return mv_memory_set(partition, user);
	case MV_IOCTL_PARTITION_GET_MEMORY:
		return mv_memory_get(partition, user);
	case MV_IOCTL_PARTITION_VCPU:
		return mv_vcpu_open(attachment, argument);
	case MV_IOCTL_PARTITION_DOORBELL:
		return mv_doorbell(partition, user);
	case MV_IOCTL_PARTITION_EOI_EVENTFD:
		return mv_eoi_eventfd(partition, argument);
	case MV_IOCTL_PARTITION_IRQFD:
		return mv_irqfd(partition, user);
	case MV_IOCTL_PARTITION_MSI:
		return mv_msi(partition, user);
	case MV_IOCTL_PARTITION_SET_PROPERTY:
		return set_property(partition, user);
	case MV_IOCTL_PARTITION_KICK_ALL:
		mv_vcpus_kick(partition);
		return 0;
	case MV_IOCTL_PARTITION_DESTROY:
		return mv_partition_destroy_held(partition);
	default:
		return -ENOTTY;
	}
}

static int partition_release(struct inode *inode, struct file *file)
{
	/* Without one if attaching failed. */
	if (file->private_data)
		mv_attachment_put(file->private_data);
	return 0;
}

static const struct file_operations partition_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = partition_ioctl,
	.release = partition_release,
	.llseek = noop_llseek,
};

/* The caller's own attachment once more, or a new one. */
static struct mv_attachment *get_attachment(struct mv_partition *partition)
{
	struct mv_attachment *attachment = partition->attachment;

	if (attachment && attachment->worker == task_tgid(current)) {
		kref_get(&attachment->references);
		return attachment;
	}
	if (has_worker(partition))
		return ERR_PTR(-EBUSY);
	attachment = kzalloc(sizeof(*attachment), GFP_KERNEL_ACCOUNT);
	if (!attachment)
		return ERR_PTR(-ENOMEM);
	kref_init(&attachment->references);
	kref_get(&partition->references);
	attachment->partition = partition;
	attachment->worker = get_pid(task_tgid(current));
	/* The dead worker's, where somebody has inherited its fds and so kept them open. */
	if (partition->attachment)
		mv_partition_unbind(partition);
	WRITE_ONCE(partition->attachment, attachment);
	return attachment;
}

long mv_attach(struct mv_partition *partition, struct file **file)
{
	struct mv_attachment *attachment;
	long fd;

	lockdep_assert_held(&mv_partitions_lock);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	/* First, so that nothing can fail once the caller is attached. */
	*file = anon_inode_getfile("[microvisor-partition]", &partition_operations, NULL, O_RDWR);
	if (IS_ERR(*file)) {
		put_unused_fd(fd);
		return PTR_ERR(*file);
	}
	attachment = get_attachment(partition);
	if (IS_ERR(attachment)) {
		fput(*file);
		put_unused_fd(fd);
		return PTR_ERR(attachment);
	}
	(*file)->private_data = attachment;
	return fd;
}
