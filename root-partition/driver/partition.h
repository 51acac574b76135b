/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A partition. It lives by its id, from DEV_CREATE_PARTITION to DEV_DESTROY_PARTITION, whoever
 * holds fds; the structure lives on until the last of them is closed, and answers ENODEV.
 *
 * Locks, in order: mv_partitions_lock, a virtual CPU's lock, partition->lock. Destroying takes
 * the first to mark the partition as ended, then each of the others once, so that whoever looked
 * before is done. Whoever makes a hypercall with the partition's id holds one of them, or is in
 * an RCU read-side section, and has looked at `ended` inside.
 */
#ifndef MV_PARTITION_H
#define MV_PARTITION_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/xarray.h>

#include "microvisor_abi.h"

#define MV_SLOTS 16

struct mv_attachment;
struct mv_slot;
struct mv_vcpu;

struct mv_partition {
	struct kref references;
	u64 id;
	char name[sizeof_field(struct mv_create_partition, name)];
	/* Who knows it may attach. */
	u64 token;
	/* Being destroyed, or gone. Set under mv_partitions_lock, never cleared. */
	bool ended;
	/* Who may use it, if anybody. Changes under mv_partitions_lock. */
	struct mv_attachment *attachment;

	/* The rest changes under this. */
	struct mutex lock;
	struct list_head deposits;
	/* Pages for later deposits. */
	struct page *reserve;
	unsigned int reserve_count;
	/* Only ever filled in, so that they are read without the lock. */
	struct mv_slot *slots[MV_SLOTS];
	/* No slot from here on was ever used. */
	unsigned int slots_end;
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

extern struct mutex mv_partitions_lock;

long mv_partition_create(struct mv_create_partition __user *user);
long mv_partition_attach(struct mv_attach_partition __user *user);
long mv_partition_destroy(u64 id);
/* The same of one that the caller holds. */
long mv_partition_destroy_held(struct mv_partition *partition);
long mv_partition_list(struct mv_partition_list __user *user);
long mv_partition_info(struct mv_partition_info __user *user);
unsigned int mv_partition_count(void);

void mv_partition_put(struct mv_partition *partition);

/* Locks it for a change: 0, or ENODEV where it has ended. */
int mv_partition_lock(struct mv_partition *partition);
void mv_partition_unlock(struct mv_partition *partition);

/* Takes away what belongs to one attachment: doorbells and irqfds. */
void mv_partition_unbind(struct mv_partition *partition);

static inline bool mv_partition_ended(struct mv_partition *partition)
{
	return READ_ONCE(partition->ended);
}

#endif
