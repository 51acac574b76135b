/*
 * A plugin of QEMU's TCG that counts executed instructions by address, between two marks of the bench kernel.
 *
 * A mark is a NOP with a displacement that nothing else has; the begin and the end differ in it. When QEMU ends, the file `out`
 * gets a line for the instructions between each begin and its end, and a line for each block of code that ran there: its
 * address, its instructions, and how often it ran.
 *
 * QEMU's API (docs/devel/tcg-plugins.rst) has no header in Debian's packages; the few functions are declared here.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum callback_flags { NO_REGISTERS };

typedef void (*translated)(plugin_id id, struct qemu_plugin_tb *block);
typedef void (*executed)(unsigned int cpu, void *data);
typedef void (*ended)(plugin_id id, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translated callback);
void qemu_plugin_register_atexit_cb(plugin_id id, ended callback, void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, executed callback,
					  enum callback_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *instruction, executed callback,
					    enum callback_flags flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction, void *to, size_t size);

#define EXPORT __attribute__((visibility("default")))

/* QEMU refuses a plugin that was written for an API that it no longer has. */
EXPORT int qemu_plugin_version = 4;

/* nop dword ptr [rax + rax + displacement] */
static const unsigned char begin_mark[] = { 0x0f, 0x1f, 0x84, 0x00, 'b', 'e', 'g', 0x7f };
static const unsigned char end_mark[] = { 0x0f, 0x1f, 0x84, 0x00, 'e', 'n', 'd', 0x7f };

struct block {
	struct block *next;
	uint64_t address;
	size_t instructions;
	uint64_t runs;
};

/* The instructions between a begin and an end. */
static uint64_t segments[64];
static size_t ended_segments;
static struct block *blocks;
static const char *out;
static bool counting;

static void run(unsigned int cpu, void *data)
{
	struct block *block = data;

	if (counting) {
		block->runs++;
		segments[ended_segments] += block->instructions;
	}
}

static void begin(unsigned int cpu, void *data)
{
	counting = true;
}

static void end(unsigned int cpu, void *data)
{
	/* The last one has the rest. */
	if (counting && ended_segments + 1 < sizeof(segments) / sizeof(*segments))
		ended_segments++;
	counting = false;
}

static void translate(plugin_id id, struct qemu_plugin_tb *tb)
{
	struct block *block = calloc(1, sizeof(*block));

	if (!block)
		abort();
	block->address = qemu_plugin_tb_vaddr(tb);
	block->instructions = qemu_plugin_tb_n_insns(tb);
	block->next = blocks;
	blocks = block;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, run, NO_REGISTERS, block);
	for (size_t i = 0; i < block->instructions; i++) {
		struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
		unsigned char bytes[sizeof(begin_mark)];

		if (qemu_plugin_insn_data(instruction, bytes, sizeof(bytes)) < sizeof(bytes))
			continue;
		if (!memcmp(bytes, begin_mark, sizeof(bytes)))
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, begin, NO_REGISTERS, NULL);
		else if (!memcmp(bytes, end_mark, sizeof(bytes)))
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, end, NO_REGISTERS, NULL);
	}
}

static void print(plugin_id id, void *data)
{
	FILE *file = fopen(out, "w");

	if (!file) {
		perror(out);
		return;
	}
	for (size_t i = 0; i < ended_segments; i++)
		fprintf(file, "segment %" PRIu64 "\n", segments[i]);
	for (struct block *block = blocks; block; block = block->next) {
		if (block->runs)
			fprintf(file, "%" PRIx64 " %zu %" PRIu64 "\n", block->address,
				block->instructions, block->runs);
	}
	if (fclose(file))
		perror(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4)) {
		fprintf(stderr, "profile: write out=FILE\n");
		return 1;
	}
	out = argv[0] + 4;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
	qemu_plugin_register_atexit_cb(id, print, NULL);
	return 0;
}
