//! Pseudo terminals: settings of a master that an OCI runtime hands over.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

/// Makes the terminal write CR LF for LF, as terminals do and runtimes leave off.
///
/// # Errors
/// `ENOTTY` when this is no terminal.
pub fn map_newlines(master: BorrowedFd<'_>) -> io::Result<()> {
    let mut modes = tcgetattr(master)?;
    modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    Ok(tcsetattr(master, OptionalActions::Now, &modes)?)
}

/// Sets the size in characters; the foreground process group gets SIGWINCH.
///
/// # Errors
/// `ENOTTY` when this is no terminal.
pub fn resize(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}
