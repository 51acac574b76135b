// SPDX-License-Identifier: GPL-2.0
/*
 * Virtual CPUs: making them, and the ioctls of their fds. Running them is in run.c.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "attachment.h"
#include "compat.h"
#include "hypercall.h"
#include "machine.h"
#include "partition.h"
#include "pool.h"
#include "vcpu.h"

/* What an fd of a virtual CPU is. */
struct vcpu_file {
	struct mv_attachment *attachment;
	struct mv_vcpu *vcpu;
};

/* Bit of `register` that makes an access a write. */
#define APIC_WRITE (1U << 31)

static long apic(struct mv_vcpu *vcpu, struct mv_apic_access __user *user)
{
	struct mv_apic_access access;
	u64 value;
	long error;

	if (copy_from_user(&access, user, sizeof(access)))
		return -EFAULT;
	if (access.reserved)
		return -EINVAL;
	error = mv_call4(MV_CALL_VCPU_APIC, vcpu->partition->id, vcpu->index, access.register_,
			 access.value, &value);
	if (error)
		return error;
	if (access.register_ & APIC_WRITE) {
		mv_vcpus_wake(vcpu->partition, value);
		return 0;
	}
	return put_user(value, &user->value);
}

static long set_cpuid(struct mv_vcpu *vcpu, struct mv_set_cpuid __user *user)
{
	struct mv_set_cpuid list;
	void *page;
	long error;

	if (copy_from_user(&list, user, sizeof(list)))
		return -EFAULT;
	if (list.reserved)
		return -EINVAL;
	if (list.count > MV_MAX_CPUID_ENTRIES)
		return -ERANGE;
	page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	if (copy_from_user(page, u64_to_user_ptr(list.entries),
			   list.count * sizeof(struct mv_cpuid_entry)))
		error = -EFAULT;
	else
		error = mv_call4(MV_CALL_VCPU_SET_CPUID, vcpu->partition->id, vcpu->index,
				 mv_pfn(page), list.count, NULL);
	free_page((unsigned long)page);
	return error;
}

/* The ioctls that need the virtual CPU for themselves. */
static long locked_ioctl(struct mv_vcpu *vcpu, unsigned int command, unsigned long argument)
{
	struct mv_partition *partition = vcpu->partition;

	switch (command) {
	case MV_IOCTL_VCPU_GET_STATE:
		return mv_call2(MV_CALL_VCPU_GET_STATE, partition->id, vcpu->index, NULL);
	case MV_IOCTL_VCPU_SET_STATE:
		return mv_call2(MV_CALL_VCPU_SET_STATE, partition->id, vcpu->index, NULL);
	case MV_IOCTL_VCPU_APIC:
		return apic(vcpu, (void __user *)argument);
	case MV_IOCTL_VCPU_SET_CPUID:
		return set_cpuid(vcpu, (void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static void kick(struct mv_vcpu *vcpu)
{
	WRITE_ONCE(vcpu->kick, 1);
	mv_vcpu_wake(vcpu);
}

/* Takes the virtual CPU, unless another call has it or its partition has ended. */
static int take(struct mv_vcpu *vcpu)
{
	if (!mutex_trylock(&vcpu->lock))
		return -EBUSY;
	/* Under the lock, which ending a partition waits for. */
	if (!mv_partition_ended(vcpu->partition))
		return 0;
	mutex_unlock(&vcpu->lock);
	return -ENODEV;
}

static long vcpu_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct vcpu_file *opened = file->private_data;
	struct mv_vcpu *vcpu = opened->vcpu;
	long result = mv_attachment_check(opened->attachment);

	if (result)
		return result;
	if (command == MV_IOCTL_VCPU_KICK) {
		kick(vcpu);
		return 0;
	}
	result = take(vcpu);
	if (result)
		return result;
	result = locked_ioctl(vcpu, command, argument);
	mutex_unlock(&vcpu->lock);
	return result;
}

/*
 * Runs the virtual CPU. A filter of system calls has to look at the arguments of an ioctl each time, but not at those of
 * a read (the kernel's cache of allowed calls), and each intercept is such a call.
 */
static ssize_t vcpu_read(struct file *file, char __user *buffer, size_t size, loff_t *position)
{
	struct vcpu_file *opened = file->private_data;
	struct mv_vcpu *vcpu = opened->vcpu;
	long result = mv_attachment_check(opened->attachment);

	if (!result)
		result = take(vcpu);
	if (result)
		return result;
	result = mv_vcpu_run(vcpu);
	mutex_unlock(&vcpu->lock);
	return result;
}

/* The page outlives the partition for as long as it is mapped, being a page like any other. */
static int vcpu_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct vcpu_file *opened = file->private_data;
	int error = mv_attachment_check(opened->attachment);

	if (error)
		return error;
	if (vma->vm_pgoff || vma_pages(vma) != 1 || !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	/* A child must not write into its parent's virtual CPU. */
	mv_vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_page(vma, vma->vm_start, opened->vcpu->page);
}

static int vcpu_release(struct inode *inode, struct file *file)
{
	struct vcpu_file *opened = file->private_data;

	mv_attachment_put(opened->attachment);
	kfree(opened);
	return 0;
}

static const struct file_operations vcpu_operations = {
	.owner = THIS_MODULE,
	.read = vcpu_read,
	.unlocked_ioctl = vcpu_ioctl,
	.mmap = vcpu_mmap,
	.release = vcpu_release,
	.llseek = noop_llseek,
};

static void vcpu_free(struct mv_vcpu *vcpu)
{
	hrtimer_cancel(&vcpu->timer);
	put_page(vcpu->page);
	kfree(vcpu);
}

static struct mv_vcpu *vcpu_alloc(struct mv_partition *partition, u32 index)
{
	struct mv_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);

	if (!vcpu)
		return NULL;
	vcpu->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!vcpu->page) {
		kfree(vcpu);
		return NULL;
	}
	vcpu->shared = page_address(vcpu->page);
	vcpu->partition = partition;
	vcpu->index = index;
	mutex_init(&vcpu->lock);
	init_waitqueue_head(&vcpu->halted);
	mv_hrtimer_init(&vcpu->timer, mv_vcpu_timer);
	return vcpu;
}

static int create(struct mv_partition *partition, struct mv_vcpu *vcpu)
{
	int attempts = MV_ATTEMPTS;

	for (;;) {
		u64 needed;
		int error = mv_call3(MV_CALL_VCPU_CREATE, partition->id, vcpu->index,
				     page_to_pfn(vcpu->page), &needed);

		if (error)
			error = mv_supply(partition, error, needed, &attempts);
		else
			return 0;
		if (error)
			return error;
	}
}

/* The virtual CPU of that index, made if it is new. */
static struct mv_vcpu *find_or_make(struct mv_partition *partition, u32 index)
{
	struct mv_vcpu *vcpu;
	int error = mv_partition_lock(partition);

	if (error)
		return ERR_PTR(error);
	vcpu = partition->vcpus[index];
	if (vcpu)
		goto unlock;
	vcpu = vcpu_alloc(partition, index);
	if (!vcpu) {
		vcpu = ERR_PTR(-ENOMEM);
		goto unlock;
	}
	error = create(partition, vcpu);
	if (error) {
		vcpu_free(vcpu);
		vcpu = ERR_PTR(error);
		goto unlock;
	}
	atomic64_inc(&partition->metadata_pages);
	atomic64_inc(&mv_metadata_pages);
	/* Read without the lock by who posts an interrupt. */
	smp_store_release(&partition->vcpus[index], vcpu);
unlock:
	mv_partition_unlock(partition);
	return vcpu;
}

long mv_vcpu_open(struct mv_attachment *attachment, u64 index)
{
	struct vcpu_file *opened;
	struct mv_vcpu *vcpu;
	int fd;

	if (index >= MV_MAX_VCPUS)
		return -ERANGE;
	vcpu = find_or_make(attachment->partition, index);
	if (IS_ERR(vcpu))
		return PTR_ERR(vcpu);
	opened = kzalloc(sizeof(*opened), GFP_KERNEL_ACCOUNT);
	if (!opened)
		return -ENOMEM;
	opened->attachment = attachment;
	opened->vcpu = vcpu;
	/* The caller's fd of the partition holds the attachment meanwhile. */
	kref_get(&attachment->references);
	fd = anon_inode_getfd("[microvisor-vcpu]", &vcpu_operations, opened, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		mv_attachment_put(attachment);
		kfree(opened);
	}
	return fd;
}

/* The virtual CPU of that index, if there is one. */
static struct mv_vcpu *vcpu_at(struct mv_partition *partition, unsigned int index)
{
	/* Pairs with find_or_make. */
	return smp_load_acquire(&partition->vcpus[index]);
}

void mv_vcpus_wake(struct mv_partition *partition, u64 set)
{
	unsigned int index;

	for (index = 0; index < MV_MAX_VCPUS; index++) {
		struct mv_vcpu *vcpu = set & BIT_ULL(index) ? vcpu_at(partition, index) : NULL;

		if (vcpu)
			mv_vcpu_wake(vcpu);
	}
}

void mv_vcpus_kick(struct mv_partition *partition)
{
	unsigned int index;

	for (index = 0; index < MV_MAX_VCPUS; index++) {
		struct mv_vcpu *vcpu = vcpu_at(partition, index);

		if (vcpu)
			kick(vcpu);
	}
}

void mv_vcpus_stop(struct mv_partition *partition)
{
	unsigned int index;

	mv_vcpus_kick(partition);
	for (index = 0; index < MV_MAX_VCPUS; index++) {
		struct mv_vcpu *vcpu = vcpu_at(partition, index);

		if (vcpu) {
			mutex_lock(&vcpu->lock);
			mutex_unlock(&vcpu->lock);
		}
	}
}

unsigned int mv_vcpus_count(struct mv_partition *partition)
{
	unsigned int index, count = 0;

	for (index = 0; index < MV_MAX_VCPUS; index++)
		count += vcpu_at(partition, index) != NULL;
	return count;
}

void mv_vcpus_free(struct mv_partition *partition)
{
	unsigned int index;

	for (index = 0; index < MV_MAX_VCPUS; index++) {
		if (!partition->vcpus[index])
			continue;
		vcpu_free(partition->vcpus[index]);
		atomic64_dec(&mv_metadata_pages);
	}
}
