/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The microvisor as a whole: what it is, its log, its counters, its epochs.
 */
#ifndef MV_MACHINE_H
#define MV_MACHINE_H

#include <linux/atomic.h>

#include "microvisor_abi.h"

/* What this driver holds for partitions, in pages. */
extern atomic64_t mv_ram_pages;
extern atomic64_t mv_metadata_pages;

long mv_machine_info(struct mv_device_info __user *user);
long mv_read_log(struct mv_read_log __user *user);
long mv_verify(struct mv_verify __user *user);
long mv_read_counters(struct mv_read_counters __user *user);

/*
 * Makes every CPU pass a TLB epoch: what left a nested map before this call is out of every TLB
 * after it. Sleeps.
 */
void mv_epoch_pass(void);

#endif
