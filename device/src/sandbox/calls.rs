//! System calls, by seccomp (seccomp(2)): a list of what is needed, and nothing else.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::{Needs, SandboxError};

/// What each of our processes does: memory, descriptors that it has, threads, time.
const ALWAYS: &[c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // What a descriptor is: no path is followed but of its own entry in /proc/self/fd.
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    // Sockets that are there.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Threads and signals. What clone3 makes cannot be seen here: it is answered ENOSYS, and the C library takes clone.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Who this is: calls that libraries take for ones that cannot fail.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Time, chance, and the end of other processes.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    libc::SYS_pidfd_send_signal,
    libc::SYS_waitid,
];

/// Older names of the same, on machines that have them.
#[cfg(target_arch = "x86_64")]
const ALWAYS_OLD: &[c_long] = &[
    libc::SYS_epoll_wait,
    // By rutabaga, where a Wayland client pastes: rustix has no other call for a pipe without flags.
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_OLD: &[c_long] = &[];

/// A GPU driver finds its parts, asks what machine it is on, and talks to its device. It needs no sockets and no programs.
const DRIVER: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_ioctl,
    libc::SYS_kcmp,
    libc::SYS_mbind,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munlock,
    libc::SYS_openat,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy,
    libc::SYS_setpriority,
    libc::SYS_statfs,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

#[cfg(target_arch = "x86_64")]
const DRIVER_OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const DRIVER_OLD: &[c_long] = &[];

/// Snapshots are files: Landlock says where.
const SAVE: &[c_long] = &[
    libc::SYS_fsync,
    libc::SYS_openat,
    libc::SYS_renameat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(not(target_arch = "x86_64"))]
    libc::SYS_renameat,
];

/// Sockets get their names when all else is done, and lose them at the end: Landlock says where.
const SOCKETS: &[c_long] = &[
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// `_IOW('u', 0x43, struct udmabuf_create_list)` of linux/udmabuf.h.
const UDMABUF_CREATE_LIST: u64 = 0x4008_7543;
/// `_IOW('b', 0, struct dma_buf_sync)` of linux/dma-buf.h.
const DMA_BUF_IOCTL_SYNC: u64 = 0x4008_6200;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// No thread of this process makes another call than those of `needs`. Others fail with EPERM, and end nothing: a guest's window must not
/// go because a library looked for a file that it can do without.
pub(super) fn restrict(needs: &Needs) -> Result<(), SandboxError> {
    install(needs).map_err(|error| SandboxError::new("seccomp", error))
}

fn install(needs: &Needs) -> Result<(), seccompiler::Error> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let list = program(rules(needs)?, refused, SeccompAction::Allow)?;
    // The stricter answer of two filters is given. After the list no filter can be installed.
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let no_clone3 = program(clone3, SeccompAction::Allow, unknown)?;
    apply_filter_all_threads(&no_clone3)?;
    apply_filter_all_threads(&list)
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let machine = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, matched, machine)?.try_into()
}

fn rules(needs: &Needs) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| {
        for call in calls {
            // Without a rule: whatever the arguments.
            rules.insert(*call, Vec::new());
        }
    };
    allow(ALWAYS);
    allow(ALWAYS_OLD);
    if needs.driver {
        allow(DRIVER);
        allow(DRIVER_OLD);
    }
    if needs.save.is_some() {
        allow(SAVE);
    }
    if !needs.sockets.is_empty() {
        allow(SOCKETS);
    }
    if needs.compositor {
        allow(&[libc::SYS_connect]);
        rules.insert(
            libc::SYS_socket,
            vec![argument(0, is(u64::from(libc::AF_UNIX.unsigned_abs())))?],
        );
    }
    // Signals, of this process to itself: where Landlock does not see to it, before Linux 6.12.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, is(own))?]);
    // Threads, and no processes.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    rules.insert(libc::SYS_clone, vec![argument(0, has(thread, thread))?]);
    if !needs.driver {
        // No code is made or loaded.
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![argument(2, has(executable, 0))?]);
        }
        let names = u64::from(libc::PR_SET_NAME.unsigned_abs());
        rules.insert(libc::SYS_prctl, vec![argument(0, is(names))?]);
        let ioctls = [UDMABUF_CREATE_LIST, DMA_BUF_IOCTL_SYNC, libc::FIONBIO];
        let ioctls = ioctls.map(|number| argument(1, is(number)));
        rules.insert(
            libc::SYS_ioctl,
            ioctls.into_iter().collect::<Result<_, _>>()?,
        );
        // To ask for, not to set.
        rules.insert(libc::SYS_prlimit64, vec![argument(2, null())?]);
    }
    Ok(rules)
}

/// What an argument must be.
type Is = (SeccompCmpArgLen, SeccompCmpOp, u64);

/// A number: an int of the kernel.
fn is(value: u64) -> Is {
    (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// Of the bits `mask`, those of `value`.
fn has(mask: u64, value: u64) -> Is {
    (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

/// A pointer to nothing.
fn null() -> Is {
    (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn argument(
    number: u8,
    (length, operator, value): Is,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        number, length, operator, value,
    )?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::cut::alone;

    /// As rutabaga has it, in a process of its own: what is given up cannot be had again.
    #[test]
    fn a_wayland_client_pastes_through_a_pipe() {
        let name = "sandbox::calls::tests::a_wayland_client_pastes_through_a_pipe";
        alone(name, || {
            crate::sandbox::drop_privileges().unwrap();
            let needs = Needs {
                compositor: true,
                ..Needs::default()
            };
            restrict(&needs).unwrap();
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            assert_eq!(rustix::io::write(&writer, b"pasted"), Ok(6));
            let mut bytes = [0; 6];
            assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(6));
            assert_eq!(&bytes, b"pasted");
        });
    }
}
