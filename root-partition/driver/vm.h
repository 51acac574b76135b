/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A partition. It lives by its id, from DEV_CREATE_VM to DEV_DESTROY_VM, whoever holds fds; the
 * structure lives on until the last of them is closed, and answers ENODEV.
 *
 * Locks, in order: mv_vms_lock, a virtual CPU's lock, vm->lock. Destroying takes the first to
 * mark the partition as ended, then each of the others once, so that whoever looked before is
 * done. Whoever makes a hypercall with the partition's id holds one of them, or is in an RCU
 * read-side section, and has looked at `ended` inside.
 */
#ifndef MV_VM_H
#define MV_VM_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/xarray.h>

#include "microvisor_abi.h"

#define MV_SLOTS 16

struct mv_attachment;
struct mv_slot;
struct mv_vcpu;

struct mv_vm {
	struct kref references;
	u64 id;
	char name[sizeof_field(struct mv_create_vm, name)];
	/* Who knows it may attach. */
	u64 token;
	/* Being destroyed, or gone. Set under mv_vms_lock, never cleared. */
	bool ended;
	/* Who may use it, if anybody. Changes under mv_vms_lock. */
	struct mv_attachment *attachment;

	/* The rest changes under this. */
	struct mutex lock;
	struct list_head deposits;
	/* Pages for later deposits. */
	struct page *reserve;
	unsigned int reserve_count;
	/* Only ever filled in, so that they are read without the lock. */
	struct mv_slot *slots[MV_SLOTS];
	struct mv_vcpu *vcpus[MV_MAX_VCPUS];
	/* A page to hand lists of memory ranges over in. */
	struct mv_map_range *ranges;
	/* Doorbells by tag. */
	struct xarray doorbells;
	struct list_head irqfds;
	unsigned int irqfd_count;

	atomic64_t ram_pages;
	atomic64_t metadata_pages;
};

extern struct mutex mv_vms_lock;

long mv_vm_create(struct mv_create_vm __user *user);
long mv_vm_attach(struct mv_attach_vm __user *user);
long mv_vm_destroy(u64 id);
/* The same of one that the caller holds. */
long mv_vm_destroy_held(struct mv_vm *vm);
long mv_vm_list(struct mv_vm_list __user *user);
long mv_vm_info(struct mv_vm_info __user *user);
unsigned int mv_vm_count(void);

void mv_vm_put(struct mv_vm *vm);

/* Locks it for a change: 0, or ENODEV where it has ended. */
int mv_vm_lock(struct mv_vm *vm);
void mv_vm_unlock(struct mv_vm *vm);

/* Takes away what belongs to one attachment: doorbells and irqfds. */
void mv_vm_unbind(struct mv_vm *vm);

static inline bool mv_vm_ended(struct mv_vm *vm)
{
	return READ_ONCE(vm->ended);
}

#endif
