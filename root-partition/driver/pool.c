// SPDX-License-Identifier: GPL-2.0
/*
 * Metadata memory: pages that a partition's pool in the microvisor holds.
 *
 * Deposits of a partition are cut from blocks of its own, which its worker's memory cgroup is charged
 * for. What leaves root's nested map so lies close together, and most of that map keeps its large pages.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "hypercall.h"
#include "machine.h"
#include "memory.h"
#include "pool.h"
#include "vm.h"

/* Blocks: at most 2 MiB, the size of a large page; at least 256 KiB, which a small guest's tables fill. */
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

/* Pages of metadata that a partition may have: twice what tables of 4 KiB pages need, and the virtual CPUs'. */
static u64 limit(struct mv_vm *vm)
{
	return (mv_memory_size(vm) >> PAGE_SHIFT) / 256 + 4096;
}

static int refill(struct mv_vm *vm)
{
	/* A table for each 512 pages is what a guest needs. */
	int order = clamp(fls64(mv_memory_size(vm) >> PAGE_SHIFT >> 9), LEAST_ORDER, MOST_ORDER);

	for (; order >= 0; order--) {
		/* Only the single page is worth reclaiming or failing loudly for. */
		gfp_t effort = order ? __GFP_NORETRY | __GFP_NOWARN : 0;

		vm->reserve = alloc_pages(GFP_KERNEL_ACCOUNT | effort, order);
		if (!vm->reserve)
			continue;
		split_page(vm->reserve, order);
		vm->reserve_count = 1U << order;
		return 0;
	}
	return -ENOMEM;
}

/* Cuts up to `most` pages from the partition's reserve. */
static struct page *cut(struct mv_vm *vm, unsigned int most, unsigned int *got)
{
	struct page *first;

	if (!vm->reserve_count && refill(vm))
		return NULL;
	first = vm->reserve;
	*got = min(most, vm->reserve_count);
	vm->reserve += *got;
	vm->reserve_count -= *got;
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
	deposit->first = cut(vm, most, &deposit->count);
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
	if (atomic64_read(&vm->metadata_pages) + left > limit(vm))
		return -ENOSPC;
	while (left && !error) {
		error = deposit_run(vm, min(left, 1U << MOST_ORDER), &given);
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
	free_run(vm->reserve, vm->reserve_count);
	vm->reserve_count = 0;
}
