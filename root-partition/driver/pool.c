// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata memory: pages that a partition's pool in the microvisor holds.
 *
 * Deposits of a partition are cut from blocks of its own, which its worker's memory cgroup is
 * charged for. What leaves root's nested map so lies close together, and most of that map keeps
 * its large pages.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "hypercall.h"
#include "machine.h"
#include "memory.h"
#include "partition.h"
#include "pool.h"

/*
 * Blocks: at most 2 MiB, the size of a large page; at least 256 KiB, which a small guest's tables
 * fill.
 */
#define MOST_ORDER 9
#define LEAST_ORDER 6
/* Pages given at once, at least: a call that lacks pages lacks few, but the next lacks more. */
#define LEAST 32
/* More than any one thing takes; a request beyond is not believed. */
#define MOST 4096

struct deposit {
	struct list_head link;
	struct page *first;
	unsigned int count;
};

/*
 * Pages of metadata that a partition may have: twice what tables of 4 KiB pages need, and the
 * virtual CPUs'.
 */
static u64 limit(struct mv_partition *partition)
{
	return (mv_memory_size(partition) >> PAGE_SHIFT) / 256 + 4096;
}

static int refill(struct mv_partition *partition)
{
	/* A table for each 512 pages is what a guest needs. */
	int order = clamp(fls64(mv_memory_size(partition) >> PAGE_SHIFT >> 9), LEAST_ORDER,
			  MOST_ORDER);

	for (; order >= 0; order--) {
		/* Only the single page is worth reclaiming or failing loudly for. */
		gfp_t effort = order ? __GFP_NORETRY | __GFP_NOWARN : 0;

		partition->reserve = alloc_pages(GFP_KERNEL_ACCOUNT | effort, order);
		if (!partition->reserve)
			continue;
		split_page(partition->reserve, order);
		partition->reserve_count = 1U << order;
		return 0;
	}
	return -ENOMEM;
}

/* Cuts up to `most` pages from the partition's reserve. */
static struct page *cut(struct mv_partition *partition, unsigned int most, unsigned int *got)
{
	struct page *first;

	if (!partition->reserve_count && refill(partition))
		return NULL;
	first = partition->reserve;
	*got = min(most, partition->reserve_count);
	partition->reserve += *got;
	partition->reserve_count -= *got;
	return first;
}

static void free_run(struct page *first, unsigned int count)
{
	unsigned int n;

	for (n = 0; n < count; n++)
		__free_page(first + n);
}

static void mark_offline(struct page *first, unsigned int count, bool offline)
{
	unsigned int n;

	for (n = 0; n < count; n++) {
		if (offline)
			__SetPageOffline(first + n);
		else
			__ClearPageOffline(first + n);
	}
}

static void account(struct mv_partition *partition, s64 pages)
{
	atomic64_add(pages, &partition->metadata_pages);
	atomic64_add(pages, &mv_metadata_pages);
}

static int deposit_run(struct mv_partition *partition, unsigned int most, unsigned int *given)
{
	struct deposit *deposit = kmalloc(sizeof(*deposit), GFP_KERNEL_ACCOUNT);
	int error;

	if (!deposit)
		return -ENOMEM;
	deposit->first = cut(partition, most, &deposit->count);
	if (!deposit->first) {
		kfree(deposit);
		return -ENOMEM;
	}
	mark_offline(deposit->first, deposit->count, true);
	error = mv_call3(MV_CALL_DEPOSIT, partition->id, page_to_pfn(deposit->first),
			 deposit->count,
			 NULL);
	if (error) {
		/* All or none: it took none. */
		mark_offline(deposit->first, deposit->count, false);
		free_run(deposit->first, deposit->count);
		kfree(deposit);
		return error;
	}
	list_add(&deposit->link, &partition->deposits);
	account(partition, deposit->count);
	*given = deposit->count;
	return 0;
}

int mv_deposit(struct mv_partition *partition, u64 pages)
{
	unsigned int left, given;
	int error = 0;

	lockdep_assert_held(&partition->lock);
	if (pages > MOST)
		return -EIO;
	left = max_t(unsigned int, pages, LEAST);
	if (atomic64_read(&partition->metadata_pages) + left > limit(partition))
		return -ENOSPC;
	while (left && !error) {
		error = deposit_run(partition, min(left, 1U << MOST_ORDER), &given);
		if (!error)
			left -= given;
	}
	mv_epoch_pass();
	return error;
}

int mv_supply(struct mv_partition *partition, int error, u64 value, int *attempts)
{
	if (error != -ENOMEM && error != -EAGAIN)
		return error;
	if ((*attempts)-- == 0)
		return -EIO;
	if (error == -ENOMEM)
		return mv_deposit(partition, value);
	mv_epoch_pass();
	return 0;
}

void mv_deposits_free(struct mv_partition *partition)
{
	struct deposit *deposit, *next;

	list_for_each_entry_safe(deposit, next, &partition->deposits, link) {
		list_del(&deposit->link);
		mark_offline(deposit->first, deposit->count, false);
		free_run(deposit->first, deposit->count);
		account(partition, -(s64)deposit->count);
		kfree(deposit);
		cond_resched();
	}
	free_run(partition->reserve, partition->reserve_count);
	partition->reserve_count = 0;
}
