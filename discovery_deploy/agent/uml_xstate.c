/*
 * Lets User-Mode Linux 6.1 (Debian 12) run on processors with AMX.
 *
 * It keeps 2696 bytes of a process's extended registers (XSAVE area). Where AMX is enabled, ptrace's
 * SETREGSET of NT_X86_XSTATE takes the whole area, 11008 bytes, and answers EFAULT to anything shorter: the
 * kernel panics at boot. This library, preloaded, takes the place of libc's ptrace: it reads the whole area,
 * lays the caller's part over it and writes all of it. Elsewhere the caller's part is the whole area.
 *
 * x86-64 only; needs no header:  tcc -shared -nostdlib -nostdinc -o uml_xstate.so uml_xstate.c
 */
struct iovec {
	void *base;
	unsigned long length;
};

extern long syscall(long number, ...);
extern int *__errno_location(void);

enum {
	SYS_PTRACE = 101,
	PEEKTEXT = 1, /* PEEKDATA is 2, PEEKUSER 3 */
	PEEKUSER = 3,
	GETREGSET = 0x4204,
	SETREGSET = 0x4205,
	NT_X86_XSTATE = 0x202,
};

/* Not on the stack: User-Mode Linux has small ones. Its only thread that traces is the main one. */
static char area[65536];

static void copy(char *to, const char *from, unsigned long length)
{
	while (length--)
		*to++ = *from++;
}

static long xstate(int set, int pid, struct iovec *theirs)
{
	struct iovec whole = { area, sizeof area };
	long answer = syscall(SYS_PTRACE, (long)GETREGSET, (long)pid, (long)NT_X86_XSTATE, &whole);
	unsigned long length = theirs->length < whole.length ? theirs->length : whole.length;

	if (answer)
		return answer;
	if (set) {
		copy(area, theirs->base, length);
		return syscall(SYS_PTRACE, (long)SETREGSET, (long)pid, (long)NT_X86_XSTATE, &whole);
	}
	copy(theirs->base, area, length);
	theirs->length = length;
	return 0;
}

long ptrace(int request, int pid, void *address, void *data)
{
	long word = 0, answer;

	if ((request == GETREGSET || request == SETREGSET) && (long)address == NT_X86_XSTATE)
		return xstate(request == SETREGSET, pid, data);
	if (request < PEEKTEXT || request > PEEKUSER)
		return syscall(SYS_PTRACE, (long)request, (long)pid, address, data);
	/* The kernel writes the word that libc returns; -1 may be one, so libc clears errno. */
	answer = syscall(SYS_PTRACE, (long)request, (long)pid, address, &word);
	if (answer < 0)
		return answer;
	*__errno_location() = 0;
	return word;
}
