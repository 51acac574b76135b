/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Message-signalled interrupts into a guest.
 */
#ifndef MV_INTERRUPT_H
#define MV_INTERRUPT_H

#include "microvisor_abi.h"

struct mv_partition;

long mv_msi(struct mv_partition *partition, struct mv_msi __user *user);

/* Whether this can be a message at all. */
bool mv_msi_is_valid(u64 address, u64 data);

/*
 * Delivers one, in any context. The partition has not ended, and does not before the caller is
 * done.
 */
int mv_msi_deliver(struct mv_partition *partition, u64 address, u64 data);

#endif
