// SPDX-License-Identifier: GPL-2.0
/*
 * Partitions: making, listing and ending them.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "attachment.h"
#include "doorbell.h"
#include "hypercall.h"
#include "irqfd.h"
#include "machine.h"
#include "memory.h"
#include "partition.h"
#include "pool.h"
#include "vcpu.h"

DEFINE_MUTEX(mv_partitions_lock);
/* By id; each entry holds a reference. Changes under mv_partitions_lock. */
static DEFINE_XARRAY(partitions);
static unsigned int count;

unsigned int mv_partition_count(void)
{
	return READ_ONCE(count);
}

static void partition_free(struct kref *references)
{
	struct mv_partition *partition = container_of(references, struct mv_partition, references);

	mv_vcpus_free(partition);
	xa_destroy(&partition->doorbells);
	free_page((unsigned long)partition->ranges);
	kfree(partition);
}

void mv_partition_put(struct mv_partition *partition)
{
	kref_put(&partition->references, partition_free);
}

int mv_partition_lock(struct mv_partition *partition)
{
	mutex_lock(&partition->lock);
	if (!mv_partition_ended(partition))
		return 0;
	mutex_unlock(&partition->lock);
	return -ENODEV;
}

void mv_partition_unlock(struct mv_partition *partition)
{
	mutex_unlock(&partition->lock);
}

void mv_partition_unbind(struct mv_partition *partition)
{
	mutex_lock(&partition->lock);
	mv_irqfds_remove(partition);
	mv_doorbells_remove(partition);
	mutex_unlock(&partition->lock);
}

static struct mv_partition *partition_alloc(const char *name)
{
	struct mv_partition *partition = kzalloc(sizeof(*partition), GFP_KERNEL_ACCOUNT);

	if (!partition)
		return NULL;
	partition->ranges = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!partition->ranges) {
		kfree(partition);
		return NULL;
	}
	kref_init(&partition->references);
	mutex_init(&partition->lock);
	INIT_LIST_HEAD(&partition->deposits);
	INIT_LIST_HEAD(&partition->irqfds);
	xa_init(&partition->doorbells);
	strscpy(partition->name, name, sizeof(partition->name));
	partition->token = get_random_u64();
	return partition;
}

/* Gives everything of the microvisor's for this partition back. */
static int end_partition(struct mv_partition *partition)
{
	int attempts = 1000;

	for (;;) {
		u64 given;
		int error = mv_call1(MV_CALL_PARTITION_DESTROY, partition->id, &given);

		if (error != -EAGAIN && error != -EBUSY)
			return error;
		if (error == -EBUSY || given == 0) {
			if (--attempts == 0)
				return error;
			mv_epoch_pass();
			usleep_range(1000, 2000);
		}
		cond_resched();
	}
}

/*
 * Ends a partition that nobody can find any more. If the microvisor refuses, nothing of it is
 * freed: a page that may still be the microvisor's must not be used for anything else.
 */
static long finish(struct mv_partition *partition)
{
	long error;

	/* Whoever held the lock or was in an RCU section when it was marked is done after these. */
	mutex_lock(&partition->lock);
	mutex_unlock(&partition->lock);
	synchronize_rcu();
	mv_vcpus_stop(partition);
	mv_partition_unbind(partition);
	error = end_partition(partition);
	if (error) {
		pr_err("partition %llu does not end (%ld); its memory is lost\n", partition->id,
		       error);
		return error;
	}
	mv_memory_free(partition);
	mv_deposits_free(partition);
	mv_partition_put(partition);
	module_put(THIS_MODULE);
	return 0;
}

/* Takes it out of the table, which no call by id then finds it in. */
static void unlist(struct mv_partition *partition)
{
	lockdep_assert_held(&mv_partitions_lock);
	WRITE_ONCE(partition->ended, true);
	WRITE_ONCE(partition->attachment, NULL);
	xa_erase(&partitions, partition->id);
	WRITE_ONCE(count, count - 1);
}

/* Makes the partition, and lists it. */
static int start(struct mv_partition *partition, u64 flags)
{
	int error = mv_call1(MV_CALL_PARTITION_CREATE, flags, &partition->id);

	if (error)
		return error;
	error = xa_insert(&partitions, partition->id, partition, GFP_KERNEL_ACCOUNT);
	if (error) {
		if (end_partition(partition))
			pr_err("partition %llu does not end\n", partition->id);
		return error;
	}
	WRITE_ONCE(count, count + 1);
	/* Held while it lives; the caller's open file holds another one. */
	__module_get(THIS_MODULE);
	return 0;
}

long mv_partition_create(struct mv_create_partition __user *user)
{
	struct mv_create_partition create;
	struct file *file;
	struct mv_partition *partition;
	long error, fd;

	if (copy_from_user(&create, user, sizeof(create)))
		return -EFAULT;
	if (strnlen(create.name, sizeof(create.name)) == sizeof(create.name))
		return -EINVAL;
	partition = partition_alloc(create.name);
	if (!partition)
		return -ENOMEM;
	mutex_lock(&mv_partitions_lock);
	error = start(partition, create.flags);
	if (error) {
		mutex_unlock(&mv_partitions_lock);
		mv_partition_put(partition);
		return error;
	}
	fd = mv_attach(partition, &file);
	create.id = partition->id;
	create.token = partition->token;
	if (fd >= 0 && copy_to_user(user, &create, sizeof(create))) {
		put_unused_fd(fd);
		fd = -EFAULT;
	} else if (fd >= 0) {
		mutex_unlock(&mv_partitions_lock);
		fd_install(fd, file);
		return fd;
	} else {
		file = NULL;
	}
	unlist(partition);
	mutex_unlock(&mv_partitions_lock);
	if (file)
		fput(file);
	finish(partition);
	return fd;
}

long mv_partition_attach(struct mv_attach_partition __user *user)
{
	struct mv_attach_partition attach;
	struct file *file;
	struct mv_partition *partition;
	long fd;

	if (copy_from_user(&attach, user, sizeof(attach)))
		return -EFAULT;
	mutex_lock(&mv_partitions_lock);
	partition = xa_load(&partitions, attach.id);
	if (!partition)
		fd = -ENOENT;
	else if (partition->token != attach.token)
		fd = -EPERM;
	else
		fd = mv_attach(partition, &file);
	mutex_unlock(&mv_partitions_lock);
	if (fd >= 0)
		fd_install(fd, file);
	return fd;
}

/* Called with mv_partitions_lock, which it drops. */
static long destroy(struct mv_partition *partition)
{
	lockdep_assert_held(&mv_partitions_lock);
	if (!partition || mv_attached_elsewhere(partition)) {
		mutex_unlock(&mv_partitions_lock);
		return partition ? -EBUSY : -ENOENT;
	}
	unlist(partition);
	mutex_unlock(&mv_partitions_lock);
	return finish(partition);
}

long mv_partition_destroy(u64 id)
{
	mutex_lock(&mv_partitions_lock);
	return destroy(xa_load(&partitions, id));
}

long mv_partition_destroy_held(struct mv_partition *partition)
{
	mutex_lock(&mv_partitions_lock);
	/* Its id may be another one's by now. */
	if (mv_partition_ended(partition)) {
		mutex_unlock(&mv_partitions_lock);
		return -ENODEV;
	}
	return destroy(partition);
}

long mv_partition_list(struct mv_partition_list __user *user)
{
	struct mv_partition_list *list = kzalloc(sizeof(*list), GFP_KERNEL);
	unsigned long id;
	struct mv_partition *partition;
	long error = 0;

	if (!list)
		return -ENOMEM;
	mutex_lock(&mv_partitions_lock);
	xa_for_each(&partitions, id, partition) {
		if (list->count < ARRAY_SIZE(list->ids))
			list->ids[list->count++] = id;
	}
	mutex_unlock(&mv_partitions_lock);
	if (copy_to_user(user, list, sizeof(*list)))
		error = -EFAULT;
	kfree(list);
	return error;
}

static void describe(struct mv_partition *partition, struct mv_partition_info *info)
{
	memcpy(info->name, partition->name, sizeof(info->name));
	info->vcpus = mv_vcpus_count(partition);
	info->worker = mv_attached_worker(partition);
	info->memory = mv_memory_size(partition);
	info->ram_pages = atomic64_read(&partition->ram_pages);
	info->metadata_pages = atomic64_read(&partition->metadata_pages);
}

long mv_partition_info(struct mv_partition_info __user *user)
{
	struct mv_partition_info info = {};
	struct mv_partition *partition;

	if (get_user(info.id, &user->id))
		return -EFAULT;
	mutex_lock(&mv_partitions_lock);
	partition = xa_load(&partitions, info.id);
	if (partition)
		describe(partition, &info);
	mutex_unlock(&mv_partitions_lock);
	if (!partition)
		return -ENOENT;
	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}
