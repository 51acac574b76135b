/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Metadata memory: pages that a partition's pool in the microvisor holds.
 *
 * A deposited page is out of this kernel's reach, and a fault if it is touched. It is marked
 * PageOffline, which the readers of all memory know, and comes back when the partition ends.
 */
#ifndef MV_POOL_H
#define MV_POOL_H

#include <linux/types.h>

struct mv_partition;

/*
 * Gives a call that failed for want of pages (ENOMEM, `value` of them) or of an epoch (EAGAIN)
 * what it lacks: 0 if it is to be made again, its error if that is another one. `attempts` counts
 * down from MV_ATTEMPTS. Under partition->lock.
 */
int mv_supply(struct mv_partition *partition, int error, u64 value, int *attempts);
#define MV_ATTEMPTS 64

/*
 * Gives pages to the partition's pool, at least so many. ENOSPC where it has more already than a
 * partition of its size needs. Under partition->lock.
 */
int mv_deposit(struct mv_partition *partition, u64 pages);

/* Takes the pages of an ended partition back, and frees what was kept for later deposits. */
void mv_deposits_free(struct mv_partition *partition);

#endif
