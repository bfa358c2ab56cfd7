//! The kernel's random numbers, without a descriptor, so also for a process that has none left.

use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// Fills a buffer.
///
/// # Errors
/// The kernel's; it has none for a kernel that has started.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        filled += rustix::io::retry_on_intr(|| getrandom(&mut buffer[filled..], GetRandomFlags::empty()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_buffer_is_filled() {
        let mut buffers = [[0; 1000]; 2];
        for buffer in &mut buffers {
            fill(buffer).unwrap();
            assert!(buffer[984..].iter().any(|byte| *byte != 0));
        }
        assert_ne!(buffers[0], buffers[1]);
    }
}
