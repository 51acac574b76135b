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
#include "pool.h"
#include "vcpu.h"
#include "vm.h"

DEFINE_MUTEX(mv_vms_lock);
/* By id; each entry holds a reference. Changes under mv_vms_lock. */
static DEFINE_XARRAY(vms);
static unsigned int count;

unsigned int mv_vm_count(void)
{
	return READ_ONCE(count);
}

static void vm_free(struct kref *references)
{
	struct mv_vm *vm = container_of(references, struct mv_vm, references);

	mv_vcpus_free(vm);
	xa_destroy(&vm->doorbells);
	free_page((unsigned long)vm->ranges);
	kfree(vm);
}

void mv_vm_put(struct mv_vm *vm)
{
	kref_put(&vm->references, vm_free);
}

int mv_vm_lock(struct mv_vm *vm)
{
	mutex_lock(&vm->lock);
	if (!mv_vm_ended(vm))
		return 0;
	mutex_unlock(&vm->lock);
	return -ENODEV;
}

void mv_vm_unlock(struct mv_vm *vm)
{
	mutex_unlock(&vm->lock);
}

void mv_vm_unbind(struct mv_vm *vm)
{
	mutex_lock(&vm->lock);
	mv_irqfds_remove(vm);
	mv_doorbells_remove(vm);
	mutex_unlock(&vm->lock);
}

static struct mv_vm *vm_alloc(const char *name)
{
	struct mv_vm *vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);

	if (!vm)
		return NULL;
	vm->ranges = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!vm->ranges) {
		kfree(vm);
		return NULL;
	}
	kref_init(&vm->references);
	mutex_init(&vm->lock);
	INIT_LIST_HEAD(&vm->deposits);
	INIT_LIST_HEAD(&vm->irqfds);
	xa_init(&vm->doorbells);
	strscpy(vm->name, name, sizeof(vm->name));
	vm->token = get_random_u64();
	return vm;
}

/* Gives everything of the microvisor's for this partition back. */
static int end_partition(struct mv_vm *vm)
{
	int patience = 1000;

	for (;;) {
		u64 given;
		int error = mv_call1(MV_CALL_PARTITION_DESTROY, vm->id, &given);

		if (error != -EAGAIN && error != -EBUSY)
			return error;
		if (error == -EBUSY || given == 0) {
			if (--patience == 0)
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
static long finish(struct mv_vm *vm)
{
	long error;

	/* Whoever held the lock or was in an RCU section when it was marked is done after these. */
	mutex_lock(&vm->lock);
	mutex_unlock(&vm->lock);
	synchronize_rcu();
	mv_vcpus_stop(vm);
	mv_vm_unbind(vm);
	error = end_partition(vm);
	if (error) {
		pr_err("partition %llu does not end (%ld); its memory is lost\n", vm->id, error);
		return error;
	}
	mv_memory_free(vm);
	mv_deposits_free(vm);
	mv_vm_put(vm);
	module_put(THIS_MODULE);
	return 0;
}

/* Takes it out of the table, which no call by id then finds it in. */
static void unlist(struct mv_vm *vm)
{
	lockdep_assert_held(&mv_vms_lock);
	WRITE_ONCE(vm->ended, true);
	WRITE_ONCE(vm->attachment, NULL);
	xa_erase(&vms, vm->id);
	WRITE_ONCE(count, count - 1);
}

/* Makes the partition, and lists it. */
static int start(struct mv_vm *vm, u64 flags)
{
	int error = mv_call1(MV_CALL_PARTITION_CREATE, flags, &vm->id);

	if (error)
		return error;
	error = xa_insert(&vms, vm->id, vm, GFP_KERNEL_ACCOUNT);
	if (error) {
		if (end_partition(vm))
			pr_err("partition %llu does not end\n", vm->id);
		return error;
	}
	WRITE_ONCE(count, count + 1);
	/* Held while it lives; the caller's open file holds another one. */
	__module_get(THIS_MODULE);
	return 0;
}

long mv_vm_create(struct mv_create_vm __user *user)
{
	struct mv_create_vm create;
	struct file *file;
	struct mv_vm *vm;
	long error, fd;

	if (copy_from_user(&create, user, sizeof(create)))
		return -EFAULT;
	if (strnlen(create.name, sizeof(create.name)) == sizeof(create.name))
		return -EINVAL;
	vm = vm_alloc(create.name);
	if (!vm)
		return -ENOMEM;
	mutex_lock(&mv_vms_lock);
	error = start(vm, create.flags);
	if (error) {
		mutex_unlock(&mv_vms_lock);
		mv_vm_put(vm);
		return error;
	}
	fd = mv_attach(vm, &file);
	create.id = vm->id;
	create.token = vm->token;
	if (fd >= 0 && copy_to_user(user, &create, sizeof(create))) {
		put_unused_fd(fd);
		fd = -EFAULT;
	} else if (fd >= 0) {
		mutex_unlock(&mv_vms_lock);
		fd_install(fd, file);
		return fd;
	} else {
		file = NULL;
	}
	unlist(vm);
	mutex_unlock(&mv_vms_lock);
	if (file)
		fput(file);
	finish(vm);
	return fd;
}

long mv_vm_attach(struct mv_attach_vm __user *user)
{
	struct mv_attach_vm attach;
	struct file *file;
	struct mv_vm *vm;
	long fd;

	if (copy_from_user(&attach, user, sizeof(attach)))
		return -EFAULT;
	mutex_lock(&mv_vms_lock);
	vm = xa_load(&vms, attach.id);
	if (!vm)
		fd = -ENOENT;
	else if (vm->token != attach.token)
		fd = -EPERM;
	else
		fd = mv_attach(vm, &file);
	mutex_unlock(&mv_vms_lock);
	if (fd >= 0)
		fd_install(fd, file);
	return fd;
}

/* Called with mv_vms_lock, which it drops. */
static long destroy(struct mv_vm *vm)
{
	lockdep_assert_held(&mv_vms_lock);
	if (!vm || mv_attached_elsewhere(vm)) {
		mutex_unlock(&mv_vms_lock);
		return vm ? -EBUSY : -ENOENT;
	}
	unlist(vm);
	mutex_unlock(&mv_vms_lock);
	return finish(vm);
}

long mv_vm_destroy(u64 id)
{
	mutex_lock(&mv_vms_lock);
	return destroy(xa_load(&vms, id));
}

long mv_vm_destroy_held(struct mv_vm *vm)
{
	mutex_lock(&mv_vms_lock);
	/* Its id may be another one's by now. */
	if (mv_vm_ended(vm)) {
		mutex_unlock(&mv_vms_lock);
		return -ENODEV;
	}
	return destroy(vm);
}

long mv_vm_list(struct mv_vm_list __user *user)
{
	struct mv_vm_list *list = kzalloc(sizeof(*list), GFP_KERNEL);
	unsigned long id;
	struct mv_vm *vm;
	long error = 0;

	if (!list)
		return -ENOMEM;
	mutex_lock(&mv_vms_lock);
	xa_for_each(&vms, id, vm) {
		if (list->count < ARRAY_SIZE(list->ids))
			list->ids[list->count++] = id;
	}
	mutex_unlock(&mv_vms_lock);
	if (copy_to_user(user, list, sizeof(*list)))
		error = -EFAULT;
	kfree(list);
	return error;
}

static void describe(struct mv_vm *vm, struct mv_vm_info *info)
{
	memcpy(info->name, vm->name, sizeof(info->name));
	info->vcpus = mv_vcpus_count(vm);
	info->worker = mv_attached_worker(vm);
	info->memory = mv_memory_size(vm);
	info->ram_pages = atomic64_read(&vm->ram_pages);
	info->metadata_pages = atomic64_read(&vm->metadata_pages);
}

long mv_vm_info(struct mv_vm_info __user *user)
{
	struct mv_vm_info info = {};
	struct mv_vm *vm;

	if (get_user(info.id, &user->id))
		return -EFAULT;
	mutex_lock(&mv_vms_lock);
	vm = xa_load(&vms, info.id);
	if (vm)
		describe(vm, &info);
	mutex_unlock(&mv_vms_lock);
	if (!vm)
		return -ENOENT;
	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}
