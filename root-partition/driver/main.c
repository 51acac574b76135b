// SPDX-License-Identifier: GPL-2.0
/*
 * The module: finds the microvisor, and is /dev/microvisor.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpuhotplug.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <asm/processor.h>

#include "hypercall.h"
#include "machine.h"
#include "partition.h"

/* ABI versions have their major number in the high half. */
#define MAJOR_OF(version) ((version) >> 16)
#define MINOR_OF(version) ((version) & 0xffff)

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (command) {
	case MV_IOCTL_DEV_INFO:
		return mv_machine_info(user);
	case MV_IOCTL_DEV_CREATE_PARTITION:
		return mv_partition_create(user);
	case MV_IOCTL_DEV_ATTACH_PARTITION:
		return mv_partition_attach(user);
	case MV_IOCTL_DEV_DESTROY_PARTITION:
		return mv_partition_destroy(argument);
	case MV_IOCTL_DEV_LIST_PARTITIONS:
		return mv_partition_list(user);
	case MV_IOCTL_DEV_PARTITION_INFO:
		return mv_partition_info(user);
	case MV_IOCTL_DEV_READ_LOG:
		return mv_read_log(user);
	case MV_IOCTL_DEV_READ_COUNTERS:
		return mv_read_counters(user);
	case MV_IOCTL_DEV_VERIFY:
		return mv_verify(user);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "microvisor",
	.fops = &device_operations,
	.mode = 0600,
};

/*
 * A CPU that is offline never passes a TLB epoch, and what the microvisor frees would wait for it
 * for ever.
 */
static int refuse_offline(unsigned int cpu)
{
	pr_warn_ratelimited("CPU %u stays online: the microvisor counts on it\n", cpu);
	return -EBUSY;
}

static int hotplug_state;

static int __init find_microvisor(void)
{
	u32 highest, version, words[3], ignored;
	char signature[sizeof(words) + 1] = "";

	if (boot_cpu_has(X86_FEATURE_HYPERVISOR) || cpuid_eax(MV_CPUID_ROOT_BASE)) {
		cpuid(MV_CPUID_ROOT_BASE, &highest, &words[0], &words[1], &words[2]);
		memcpy(signature, words, sizeof(words));
	}
	if (strcmp(signature, MV_SIGNATURE) != 0 || highest <= MV_CPUID_ROOT_BASE) {
		pr_err("not running under Microvisor\n");
		return -ENODEV;
	}
	cpuid(MV_CPUID_ROOT_BASE + 1, &version, &ignored, &ignored, &ignored);
	if (MAJOR_OF(version) != MAJOR_OF(MV_ABI_VERSION)) {
		pr_err("the microvisor speaks ABI %u.%u, this driver %u.%u\n",
		       MAJOR_OF(version), MINOR_OF(version),
		       MAJOR_OF(MV_ABI_VERSION), MINOR_OF(MV_ABI_VERSION));
		return -ENODEV;
	}
	return 0;
}

static int __init start(void)
{
	int error = find_microvisor();

	if (error)
		return error;
	error = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "microvisor:online",
					  NULL, refuse_offline);
	if (error < 0)
		return error;
	hotplug_state = error;
	error = misc_register(&device);
	if (error) {
		cpuhp_remove_state_nocalls(hotplug_state);
		return error;
	}
	pr_info("ABI %u.%u\n", MAJOR_OF(MV_ABI_VERSION), MINOR_OF(MV_ABI_VERSION));
	return 0;
}

static void __exit stop(void)
{
	misc_deregister(&device);
	cpuhp_remove_state_nocalls(hotplug_state);
}

module_init(start);
module_exit(stop);

MODULE_DESCRIPTION("Driver of the root partition under Microvisor");
MODULE_LICENSE("GPL");
