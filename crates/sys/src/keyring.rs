//! The kernel's session keyring (keyrings(7)) of the calling process.

use std::io;

/// linux/keyctl.h, `KEY_POS_VIEW | KEY_POS_READ`: who has it may see that it holds nothing. Nobody may search it (which is
/// what ends a keyring, too: `KEYCTL_INVALIDATE`), write to it or change this.
const LOOK_ONLY: libc::c_ulong = 0x0100_0000 | 0x0200_0000;

/// linux/keyctl.h, `KEYCTL_JOIN_SESSION_KEYRING`.
const JOIN: libc::c_ulong = 1;
/// linux/keyctl.h, `KEYCTL_SETPERM`.
const SETPERM: libc::c_ulong = 5;
/// linux/keyctl.h, `KEYCTL_RESTRICT_KEYRING`; without a type it allows no link at all.
const RESTRICT: libc::c_ulong = 29;

/// Gives the calling thread, and with it all threads and programs that it starts from now on, a session keyring that holds
/// nothing and never will: neither the keys of whoever started this process, nor any that one heir leaves for another.
///
/// # Errors
/// The kernel's: `EDQUOT` when the user has as many keys as it may, `ENOSYS` of a kernel without keyrings.
pub fn join_empty_session() -> io::Result<()> {
    let keyring = libc::c_ulong::try_from(keyctl(JOIN, 0, 0)?).map_err(io::Error::other)?;
    keyctl(RESTRICT, keyring, 0)?;
    keyctl(SETPERM, keyring, LOOK_ONLY)?;
    Ok(())
}

fn keyctl(operation: libc::c_ulong, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: of these operations' arguments only a name or a type would be a pointer, and those are null here.
    match unsafe { libc::syscall(libc::SYS_keyctl, operation, first, second, 0, 0) } {
        failed if failed < 0 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// linux/keyctl.h.
    const SESSION: libc::c_ulong = (-3_i64).cast_unsigned();
    const REVOKE: libc::c_ulong = 3;
    const INVALIDATE: libc::c_ulong = 21;
    const LINK: libc::c_ulong = 8;
    const READ: libc::c_ulong = 11;

    #[test]
    fn an_empty_session_stays_empty_and_nobody_ends_or_opens_it() {
        // Of this thread alone: keyrings are those of credentials.
        std::thread::spawn(|| {
            join_empty_session().unwrap();
            is_sealed();
            // Who is started from here has it.
            std::thread::spawn(is_sealed).join().unwrap();
        })
        .join()
        .unwrap();
    }

    fn is_sealed() {
        let user: libc::c_ulong = (-4_i64).cast_unsigned();
        assert_eq!(keyctl(READ, SESSION, 0).unwrap(), 0);
        // Also root, who owns it.
        for done in [
            keyctl(LINK, user, SESSION),
            keyctl(REVOKE, SESSION, 0),
            keyctl(INVALIDATE, SESSION, 0),
            keyctl(SETPERM, SESSION, 0x3f3f_0000),
        ] {
            assert_eq!(done.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
    }
}
