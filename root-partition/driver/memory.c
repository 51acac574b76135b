// SPDX-License-Identifier: GPL-2.0
/*
 * A partition's RAM: slots of its address space, each backed by a memfd.
 *
 * A page is held by a plain reference. It is never moved or swapped out while it has that, and a
 * hole punched into the memfd takes it away from the worker, not from the guest.
 */
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/apicdef.h>

#include "hypercall.h"
#include "machine.h"
#include "memory.h"
#include "partition.h"
#include "pool.h"

#define CHUNK_SHIFT 21
#define CHUNK_PAGES (1UL << (CHUNK_SHIFT - PAGE_SHIFT))
/* Guest physical addresses end here. */
#define ADDRESS_END (1ULL << 48)
/* A slot's table takes 8 bytes for each 2 MiB. */
#define LARGEST_SLOT (1ULL << 44)
/* Nested page fault: the page is there, but may not be used so (APM vol. 2, 15.25.6). */
#define FAULT_PRESENT 1

struct mv_slot {
	struct file *file;
	u64 address;
	u64 size;
	/* In the memfd, in bytes. */
	u64 offset;
	u64 flags;
	unsigned long chunk_count;
	/*
	 * Held pages, by their place in the chunk: an array once the chunk was touched. They are
	 * filled in from the first to the last. Each under partition->lock.
	 */
	struct page **chunks[];
};

/* The pages of a chunk that lie in the slot. */
struct span {
	unsigned int first;
	unsigned int end;
};

static struct span span_of(const struct mv_slot *slot, unsigned long chunk)
{
	u64 first = slot->address >> PAGE_SHIFT;
	u64 end = (slot->address + slot->size) >> PAGE_SHIFT;
	u64 base = ((slot->address >> CHUNK_SHIFT) + chunk) * CHUNK_PAGES;

	return (struct span) {
		.first = first > base ? first - base : 0,
		.end = min_t(u64, end - base, CHUNK_PAGES),
	};
}

/* Guest page number of a page of a chunk. */
static u64 guest_page(const struct mv_slot *slot, unsigned long chunk, unsigned int n)
{
	return ((slot->address >> CHUNK_SHIFT) + chunk) * CHUNK_PAGES + n;
}

static void account(struct mv_partition *partition, s64 pages)
{
	atomic64_add(pages, &partition->ram_pages);
	atomic64_add(pages, &mv_ram_pages);
}

/*
 * Donates the pages that the first `count` entries of partition->ranges list. `done`: how many of
 * them the partition has afterwards, whatever the answer is.
 */
static int donate(struct mv_partition *partition, unsigned int count, u64 *done)
{
	int attempts = MV_ATTEMPTS;

	*done = 0;
	for (;;) {
		u64 value;
		int error = mv_call4(MV_CALL_MEMORY_MAP, partition->id,
				     mv_pfn(partition->ranges), *done, count,
				     &value);

		if (error == -EAGAIN && value > *done) {
			*done = value;
			attempts = MV_ATTEMPTS;
			cond_resched();
			continue;
		}
		if (error == -ENOMEM || error == -EAGAIN) {
			error = mv_supply(partition, error, value, &attempts);
			if (error)
				return error;
			continue;
		}
		*done = max(*done, value);
		return error;
	}
}

/*
 * Lists pages of a chunk from `n` to `end`, as many as partition->ranges has room for; the
 * entries used.
 */
static unsigned int list_ranges(struct mv_partition *partition, const struct mv_slot *slot,
				unsigned long chunk, unsigned int n, unsigned int end)
{
	struct page **pages = slot->chunks[chunk];
	struct mv_map_range *range = NULL;
	unsigned int count = 0;

	while (n < end) {
		struct folio *folio = page_folio(pages[n]);
		u64 frame = page_to_pfn(pages[n]);
		/* The rest of the folio follows, as hold_folio has written it. */
		unsigned int rest = min_t(unsigned long, end - n,
					  folio_nr_pages(folio) - folio_page_idx(folio, pages[n]));

		if (range && range->pfn + range->pages == frame) {
			range->pages += rest;
		} else {
			if (count == MV_MAX_MAP_RANGES)
				break;
			range = &partition->ranges[count++];
			*range = (struct mv_map_range) {
				.gpa_pfn = guest_page(slot, chunk, n),
				.pfn = frame,
				.pages = rest,
				.flags = slot->flags & MV_MEMORY_READ_ONLY ? MV_MAP_READ_ONLY : 0,
			};
		}
		n += rest;
	}
	return count;
}

/*
 * Writes `page`, which is held, and the pages behind it in its folio to `pages`, and holds those too; how many. The
 * folio of a large page saves a lookup in the file for each of its pages, and cannot be split while it is held.
 */
static unsigned int hold_folio(struct page *page, struct page **pages, unsigned int room)
{
	struct folio *folio = page_folio(page);
	unsigned long first = folio_page_idx(folio, page);
	unsigned int n, count = min_t(unsigned long, room, folio_nr_pages(folio) - first);

	folio_ref_add(folio, count - 1);
	for (n = 0; n < count; n++)
		pages[n] = folio_page(folio, first + n);
	return count;
}

/* Takes pages of a chunk from the memfd, from `n` to `end`. `taken`: the first that it has not. */
static int take(const struct mv_slot *slot, unsigned long chunk, unsigned int n, unsigned int end,
		unsigned int *taken)
{
	struct address_space *mapping = slot->file->f_mapping;
	/* What is held for the guest's life had better not stand where memory is to be movable. */
	gfp_t gfp = mapping_gfp_mask(mapping) & ~__GFP_MOVABLE;

	while (n < end) {
		u64 place = guest_page(slot, chunk, n) - (slot->address >> PAGE_SHIFT);
		struct page *page = shmem_read_mapping_page_gfp(
			mapping, (slot->offset >> PAGE_SHIFT) + place, gfp);

		*taken = n;
		if (IS_ERR(page))
			return PTR_ERR(page);
		/* The guest's writes leave no trace in the tables that are looked at for this. */
		set_page_dirty(page);
		n += hold_folio(page, &slot->chunks[chunk][n], end - n);
		cond_resched();
	}
	*taken = n;
	return 0;
}

/* Donates the pages of a chunk that the partition does not have yet. */
static int populate(struct mv_partition *partition, struct mv_slot *slot, unsigned long chunk)
{
	struct span span = span_of(slot, chunk);
	struct page **pages = slot->chunks[chunk];
	unsigned int n = span.first, had, taken;
	int error, refused = 0;

	lockdep_assert_held(&partition->lock);
	if (!pages) {
		pages = kcalloc(CHUNK_PAGES, sizeof(*pages), GFP_KERNEL_ACCOUNT);
		if (!pages)
			return -ENOMEM;
		slot->chunks[chunk] = pages;
	}
	if (pages[span.end - 1])
		return 0;
	while (pages[n])
		n++;
	had = n;
	error = take(slot, chunk, n, span.end, &taken);
	while (n < taken && !refused) {
		unsigned int count = list_ranges(partition, slot, chunk, n, taken);
		u64 done;

		refused = donate(partition, count, &done);
		n += done;
	}
	account(partition, n - had);
	while (taken > n) {
		put_page(pages[--taken]);
		pages[taken] = NULL;
	}
	return refused ? refused : error;
}

static struct mv_slot *find_slot(struct mv_partition *partition, u64 address)
{
	unsigned int n, end = smp_load_acquire(&partition->slots_end);

	for (n = 0; n < end; n++) {
		struct mv_slot *slot = smp_load_acquire(&partition->slots[n]);

		if (slot && address - slot->address < slot->size)
			return slot;
	}
	return NULL;
}

int mv_memory_fault(struct mv_partition *partition, u64 address, u64 error_code)
{
	struct mv_slot *slot;
	int error;

	if (error_code & FAULT_PRESENT)
		return 0;
	slot = find_slot(partition, address);
	if (!slot)
		return 0;
	error = mv_partition_lock(partition);
	if (error)
		return error;
	/* If another virtual CPU was faster, there is nothing to do. */
	error = populate(partition, slot,
			 (address >> CHUNK_SHIFT) - (slot->address >> CHUNK_SHIFT));
	mv_partition_unlock(partition);
	return error ? error : 1;
}

/* The slot is there only as long as the lock is held, or the partition has not ended. */
static int populate_all(struct mv_partition *partition, struct mv_slot *slot, unsigned long chunks)
{
	unsigned long chunk;

	for (chunk = 0; chunk < chunks; chunk++) {
		int error = mv_partition_lock(partition);

		if (error)
			return error;
		error = populate(partition, slot, chunk);
		mv_partition_unlock(partition);
		if (error)
			return error;
		if (fatal_signal_pending(current))
			return -EINTR;
	}
	return 0;
}

static bool overlaps(u64 a, u64 a_size, u64 b, u64 b_size)
{
	return a < b + b_size && b < a + a_size;
}

static int check_range(const struct mv_memory_slot *wanted)
{
	u64 last;

	if (wanted->reserved || wanted->flags & ~(MV_MEMORY_POPULATE | MV_MEMORY_READ_ONLY) ||
	    wanted->slot >= MV_SLOTS)
		return -EINVAL;
	if (!PAGE_ALIGNED(wanted->gpa) || !PAGE_ALIGNED(wanted->size) ||
	    !PAGE_ALIGNED(wanted->offset) || wanted->size == 0)
		return -EINVAL;
	if (check_add_overflow(wanted->gpa, wanted->size - 1, &last) || last >= ADDRESS_END ||
	    wanted->size > LARGEST_SLOT)
		return -EINVAL;
	/* The virtual APIC's page can be no RAM. */
	if (overlaps(wanted->gpa, wanted->size, APIC_DEFAULT_PHYS_BASE, PAGE_SIZE))
		return -EADDRINUSE;
	return 0;
}

/* A memfd that cannot lose what a slot takes from it. */
static int check_file(struct file *file, const struct mv_memory_slot *wanted)
{
	struct inode *inode = file_inode(file);
	unsigned int seals;
	u64 end;

	if (!shmem_mapping(file->f_mapping))
		return -EINVAL;
	seals = READ_ONCE(SHMEM_I(inode)->seals);
	if (!(seals & F_SEAL_SHRINK) || !(file->f_mode & FMODE_READ))
		return -EPERM;
	if (!(wanted->flags & MV_MEMORY_READ_ONLY) &&
	    (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) || !(file->f_mode & FMODE_WRITE)))
		return -EPERM;
	if (check_add_overflow(wanted->offset, wanted->size, &end) || end > i_size_read(inode))
		return -EINVAL;
	return 0;
}

static struct mv_slot *slot_alloc(struct file *file, const struct mv_memory_slot *wanted)
{
	u64 first = wanted->gpa >> CHUNK_SHIFT;
	u64 last = (wanted->gpa + wanted->size - 1) >> CHUNK_SHIFT;
	struct mv_slot *slot =
		kvzalloc(struct_size(slot, chunks, last - first + 1), GFP_KERNEL_ACCOUNT);

	if (!slot)
		return NULL;
	slot->file = get_file(file);
	slot->address = wanted->gpa;
	slot->size = wanted->size;
	slot->offset = wanted->offset;
	slot->flags = wanted->flags & MV_MEMORY_READ_ONLY;
	slot->chunk_count = last - first + 1;
	return slot;
}

static void slot_free(struct mv_slot *slot)
{
	fput(slot->file);
	kvfree(slot);
}

static int add_slot(struct mv_partition *partition, unsigned int number, struct mv_slot *slot)
{
	unsigned int n;
	int error = mv_partition_lock(partition);

	if (error)
		return error;
	if (partition->slots[number])
		error = -EEXIST;
	for (n = 0; n < MV_SLOTS && !error; n++) {
		const struct mv_slot *other = partition->slots[n];

		if (other && overlaps(slot->address, slot->size, other->address, other->size))
			error = -EADDRINUSE;
	}
	if (!error) {
		/* Both pair with find_slot. */
		smp_store_release(&partition->slots[number], slot);
		if (number >= partition->slots_end)
			smp_store_release(&partition->slots_end, number + 1);
	}
	mv_partition_unlock(partition);
	return error;
}

long mv_memory_set(struct mv_partition *partition, struct mv_memory_slot __user *user)
{
	struct mv_memory_slot wanted;
	unsigned long chunks;
	struct mv_slot *slot;
	struct file *file;
	long error;

	if (copy_from_user(&wanted, user, sizeof(wanted)))
		return -EFAULT;
	error = check_range(&wanted);
	if (error)
		return error;
	file = fget(wanted.fd);
	if (!file)
		return -EBADF;
	error = check_file(file, &wanted);
	slot = error ? NULL : slot_alloc(file, &wanted);
	if (!error && !slot)
		error = -ENOMEM;
	if (!error)
		mapping_set_unevictable(file->f_mapping);
	fput(file);
	if (error)
		return error;
	chunks = slot->chunk_count;
	error = add_slot(partition, wanted.slot, slot);
	if (error) {
		slot_free(slot);
		return error;
	}
	/* A slot that could not be populated in full is there nevertheless. */
	return wanted.flags & MV_MEMORY_POPULATE ? populate_all(partition, slot, chunks) : 0;
}

/* Describes a slot; its file, with a reference. */
static struct file *describe(struct mv_partition *partition, unsigned int number,
			     struct mv_memory_slot *answer)
{
	const struct mv_slot *slot;
	struct file *file;
	int error = mv_partition_lock(partition);

	if (error)
		return ERR_PTR(error);
	slot = number < MV_SLOTS ? partition->slots[number] : NULL;
	if (slot) {
		file = get_file(slot->file);
		answer->slot = number;
		answer->gpa = slot->address;
		answer->size = slot->size;
		answer->offset = slot->offset;
		answer->flags = slot->flags;
	} else {
		file = ERR_PTR(-ENOENT);
	}
	mv_partition_unlock(partition);
	return file;
}

long mv_memory_get(struct mv_partition *partition, struct mv_memory_slot __user *user)
{
	struct mv_memory_slot answer = {};
	struct file *file;
	unsigned int number;
	int fd;

	if (get_user(number, &user->slot))
		return -EFAULT;
	file = describe(partition, number, &answer);
	if (IS_ERR(file))
		return PTR_ERR(file);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		fput(file);
		return fd;
	}
	answer.fd = fd;
	if (copy_to_user(user, &answer, sizeof(answer))) {
		put_unused_fd(fd);
		fput(file);
		return -EFAULT;
	}
	fd_install(fd, file);
	return 0;
}

u64 mv_memory_size(struct mv_partition *partition)
{
	u64 bytes = 0;
	unsigned int n;

	for (n = 0; n < MV_SLOTS; n++) {
		const struct mv_slot *slot = smp_load_acquire(&partition->slots[n]);

		if (slot)
			bytes += slot->size;
	}
	return bytes;
}

static void let_go(struct mv_partition *partition, struct mv_slot *slot, unsigned long chunk)
{
	struct page **pages = slot->chunks[chunk];
	unsigned int n, held = 0;

	if (!pages)
		return;
	for (n = 0; n < CHUNK_PAGES; n++) {
		if (pages[n]) {
			put_page(pages[n]);
			held++;
		}
	}
	kfree(pages);
	account(partition, -(s64)held);
	cond_resched();
}

void mv_memory_free(struct mv_partition *partition)
{
	unsigned int n;

	for (n = 0; n < MV_SLOTS; n++) {
		struct mv_slot *slot = partition->slots[n];
		unsigned long chunk;

		if (!slot)
			continue;
		for (chunk = 0; chunk < slot->chunk_count; chunk++)
			let_go(partition, slot, chunk);
		partition->slots[n] = NULL;
		slot_free(slot);
	}
}
