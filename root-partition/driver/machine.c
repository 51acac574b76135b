// SPDX-License-Identifier: GPL-2.0
/*
 * The microvisor as a whole: what it is, its log, its counters, its epochs.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <asm/tsc.h>

#include "hypercall.h"
#include "machine.h"
#include "partition.h"

/* What log_read puts into a page. */
struct log_page {
	u64 count;
	char text[PAGE_SIZE - sizeof(u64)];
};

atomic64_t mv_ram_pages;
atomic64_t mv_metadata_pages;

long mv_machine_info(struct mv_device_info __user *user)
{
	struct mv_device_info info = {
		.driver_abi = MV_ABI_VERSION,
		.tsc_khz = tsc_khz,
		.partitions = mv_partition_count(),
		.ram_pages = atomic64_read(&mv_ram_pages),
		.metadata_pages = atomic64_read(&mv_metadata_pages),
	};
	void *page = (void *)get_zeroed_page(GFP_KERNEL);
	long error;

	if (!page)
		return -ENOMEM;
	error = mv_call1(MV_CALL_MACHINE_INFO, mv_pfn(page), NULL);
	if (!error) {
		memcpy(info.machine, page, sizeof(info.machine));
		if (copy_to_user(user, &info, sizeof(info)))
			error = -EFAULT;
	}
	free_page((unsigned long)page);
	return error;
}

/* Fills the user's buffer page by page, until it is full or the log ends. */
static long copy_log(struct mv_read_log *log, struct log_page *page)
{
	char __user *buffer = u64_to_user_ptr(log->buffer);

	while (log->copied < log->size) {
		u64 position, left = log->size - log->copied;
		long error = mv_call2(MV_CALL_LOG_READ, mv_pfn(page), log->position, &position);
		u64 count = min_t(u64, page->count, sizeof(page->text));

		if (error)
			return error;
		if (count == 0)
			break;
		/* It may begin later than asked for, where the log has lost its oldest part. */
		position -= count;
		count = min(count, left);
		if (copy_to_user(buffer + log->copied, page->text, count))
			return -EFAULT;
		log->copied += count;
		log->position = position + count;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

long mv_read_log(struct mv_read_log __user *user)
{
	struct log_page *page;
	struct mv_read_log log;
	long error;

	if (copy_from_user(&log, user, sizeof(log)))
		return -EFAULT;
	log.copied = 0;
	page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	error = copy_log(&log, page);
	if (!error && copy_to_user(user, &log, sizeof(log)))
		error = -EFAULT;
	free_page((unsigned long)page);
	return error;
}

long mv_read_counters(struct mv_read_counters __user *user)
{
	struct mv_read_counters which;
	void *page;
	long error;

	if (copy_from_user(&which, user, sizeof(which)))
		return -EFAULT;
	page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	error = mv_call3(MV_CALL_COUNTERS_READ, which.id, which.vcpu, mv_pfn(page), NULL);
	if (!error && copy_to_user(u64_to_user_ptr(which.buffer), page, sizeof(struct mv_counters)))
		error = -EFAULT;
	free_page((unsigned long)page);
	return error;
}

long mv_verify(struct mv_verify __user *user)
{
	struct mv_verify step;
	void *page;
	long error;

	if (copy_from_user(&step, user, sizeof(step)))
		return -EFAULT;
	page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	error = mv_call2(MV_CALL_VERIFY, mv_pfn(page), step.position, &step.position);
	if (!error) {
		memcpy(step.report, page, sizeof(step.report));
		if (copy_to_user(user, &step, sizeof(step)))
			error = -EFAULT;
	}
	free_page((unsigned long)page);
	return error;
}

static void pass(void *unused)
{
	mv_call0(MV_CALL_EPOCH_PASS, NULL);
}

void mv_epoch_pass(void)
{
	on_each_cpu(pass, NULL, true);
}
