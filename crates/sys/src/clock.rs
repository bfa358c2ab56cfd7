//! Whether the kernel's clock is synchronised.

use std::io;

/// Whether a time service (chrony, systemd-timesyncd, ntpd) has marked the kernel's clock as synchronised.
///
/// # Errors
/// The kernel's: none that a process may expect.
pub fn synchronized() -> io::Result<bool> {
    // SAFETY: `timex` is a C struct of integers, for which zeroes are a valid value.
    let mut query: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `query` is a valid timex that outlives the call; `modes` is 0, so nothing is changed.
    let state = unsafe { libc::adjtimex(&raw mut query) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(query.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::synchronized().unwrap();
    }
}
