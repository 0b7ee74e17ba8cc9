//! How much a file of rows holds, as far as that is known without reading all of it.

/// What the beginning or the footer of a file says about the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// The number of rows; for JSON Lines it is an estimate, unless the file is short.
    pub rows: f64,
    /// The approximate bytes of text in them.
    pub text_bytes: f64,
}
