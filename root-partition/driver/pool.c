// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata memory: pages that a partition's pool in the microvisor holds.
 *
 * Deposits of all partitions are cut from a reserve of large blocks. What leaves root's nested map
 * so lies close together, and most of that map keeps its large pages.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "hypercall.h"
#include "machine.h"
#include "pool.h"
#include "vm.h"

/* Block of the reserve: 2 MiB, the size of a large page. */
#define BLOCK_ORDER 9
/* Pages given at once, at least: a call that lacks pages lacks few, but the next lacks more. */
#define LEAST 32
/* More than any one thing takes; a request beyond is not believed. */
#define MOST 4096

struct deposit {
	struct list_head link;
	struct page *first;
	unsigned int count;
};

static DEFINE_MUTEX(reserve_lock);
/* The pages left of the last block, each to be freed alone. */
static struct page *reserve;
static unsigned int reserve_count;

static int refill(void)
{
	int order;

	for (order = BLOCK_ORDER; order >= 0; order--) {
		/* Only the single page is worth reclaiming or failing loudly for. */
		gfp_t effort = order ? __GFP_NORETRY | __GFP_NOWARN : 0;

		reserve = alloc_pages(GFP_KERNEL | effort, order);
		if (!reserve)
			continue;
		split_page(reserve, order);
		reserve_count = 1U << order;
		return 0;
	}
	return -ENOMEM;
}

/* Cuts up to `most` pages from the reserve. */
static struct page *cut(unsigned int most, unsigned int *got)
{
	struct page *first = NULL;

	mutex_lock(&reserve_lock);
	if (reserve_count || !refill()) {
		first = reserve;
		*got = min(most, reserve_count);
		reserve += *got;
		reserve_count -= *got;
	}
	mutex_unlock(&reserve_lock);
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

static void account(struct mv_vm *vm, s64 pages)
{
	atomic64_add(pages, &vm->metadata_pages);
	atomic64_add(pages, &mv_metadata_pages);
}

static int deposit_run(struct mv_vm *vm, unsigned int most, unsigned int *given)
{
	struct deposit *deposit = kmalloc(sizeof(*deposit), GFP_KERNEL_ACCOUNT);
	int error;

	if (!deposit)
		return -ENOMEM;
	deposit->first = cut(most, &deposit->count);
	if (!deposit->first) {
		kfree(deposit);
		return -ENOMEM;
	}
	mark_offline(deposit->first, deposit->count, true);
	error = mv_call3(MV_CALL_DEPOSIT, vm->id, page_to_pfn(deposit->first), deposit->count,
			 NULL);
	if (error) {
		/* All or none: it took none. */
		mark_offline(deposit->first, deposit->count, false);
		free_run(deposit->first, deposit->count);
		kfree(deposit);
		return error;
	}
	list_add(&deposit->link, &vm->deposits);
	account(vm, deposit->count);
	*given = deposit->count;
	return 0;
}

int mv_deposit(struct mv_vm *vm, u64 pages)
{
	unsigned int left, given;
	int error = 0;

	lockdep_assert_held(&vm->lock);
	if (pages > MOST)
		return -EIO;
	left = max_t(unsigned int, pages, LEAST);
	while (left && !error) {
		error = deposit_run(vm, min(left, 1U << BLOCK_ORDER), &given);
		if (!error)
			left -= given;
	}
	mv_epoch_pass();
	return error;
}

int mv_supply(struct mv_vm *vm, int error, u64 value, int *patience)
{
	if (error != -ENOMEM && error != -EAGAIN)
		return error;
	if ((*patience)-- == 0)
		return -EIO;
	if (error == -ENOMEM)
		return mv_deposit(vm, value);
	mv_epoch_pass();
	return 0;
}

void mv_deposits_free(struct mv_vm *vm)
{
	struct deposit *deposit, *next;

	list_for_each_entry_safe(deposit, next, &vm->deposits, link) {
		list_del(&deposit->link);
		mark_offline(deposit->first, deposit->count, false);
		free_run(deposit->first, deposit->count);
		account(vm, -(s64)deposit->count);
		kfree(deposit);
		cond_resched();
	}
}

void mv_pool_exit(void)
{
	free_run(reserve, reserve_count);
	reserve_count = 0;
}
