/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A partition's RAM: slots of its address space, each backed by a memfd.
 *
 * Pages are taken from the memfd, held and donated when the guest first touches their 2 MiB chunk.
 */
#ifndef MV_MEMORY_H
#define MV_MEMORY_H

#include "microvisor_abi.h"

struct mv_partition;

long mv_memory_set(struct mv_partition *partition, struct mv_memory_slot __user *user);
long mv_memory_get(struct mv_partition *partition, struct mv_memory_slot __user *user);

/*
 * The guest touched memory that is not mapped. 1: it is now; 0: it is no RAM, or may not be
 * written; or an error.
 */
int mv_memory_fault(struct mv_partition *partition, u64 address, u64 error_code);

/* Bytes in all slots. */
u64 mv_memory_size(struct mv_partition *partition);

/* Lets go of the pages of an ended partition. */
void mv_memory_free(struct mv_partition *partition);

#endif
