//! Terminals.

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Width, not 0.
    pub columns: u16,
    /// Height, not 0.
    pub rows: u16,
}
