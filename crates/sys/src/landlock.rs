//! Landlock in the one form that needs no rules: the calling process may access no file by path.

use std::io;

/// `struct landlock_ruleset_attr` of linux/landlock.h, up to its third version.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const ASK_VERSION: u32 = 1;

/// What each version of the interface can forbid: (version, rights on files, rights on the network, scopes).
const VERSIONS: [(i64, u64, u64, u64); 6] = [
    (6, (1 << 16) - 1, 3, 3),
    (5, (1 << 16) - 1, 3, 0),
    (4, (1 << 15) - 1, 3, 0),
    (3, (1 << 15) - 1, 0, 0),
    (2, (1 << 14) - 1, 0, 0),
    (1, (1 << 13) - 1, 0, 0),
];

/// The version of the kernel's interface.
///
/// # Errors
/// `Unsupported` where the kernel has no Landlock (before 5.13, or switched off); otherwise the kernel's.
pub fn version() -> io::Result<i64> {
    let nothing: *const Ruleset = std::ptr::null();
    // SAFETY: with this flag the kernel takes no pointer and no size, and answers a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, ASK_VERSION) };
    if version < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => io::ErrorKind::Unsupported.into(),
            _ => error,
        });
    }
    Ok(version)
}

/// Forbids the calling thread, and all that it starts, to open, make, remove, rename or run any file, to bind or connect TCP
/// ports, and to signal or reach by abstract sockets what is outside, as far as the kernel knows these. Needs
/// `no_new_privs`. Descriptors that are open stay usable.
///
/// # Errors
/// `Unsupported` where the kernel has no Landlock (before 5.13, or switched off); otherwise the kernel's.
pub fn no_files() -> io::Result<()> {
    let version = version()?;
    let Some((_, fs, net, scoped)) = VERSIONS.into_iter().find(|(known, ..)| *known <= version) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let ruleset = Ruleset { handled_access_fs: fs, handled_access_net: net, scoped };
    let pointer: *const Ruleset = &ruleset;
    let size = size_of::<Ruleset>();
    // SAFETY: the structure lives across the call, has that size, and the kernel only reads it. Fields that an older kernel
    // does not know are zero, which it accepts.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, pointer, size, 0u32) };
    let made = i32::try_from(made).map_err(io::Error::other)?;
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call takes integers; the descriptor was just made.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, made, 0u32) };
    let result = if restricted < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    crate::process::close_one(u32::try_from(made).map_err(io::Error::other)?)?;
    result
}
