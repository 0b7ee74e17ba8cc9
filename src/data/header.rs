//! How much a file of rows holds, as far as that can be told without reading it all.

/// What the beginning or the footer of a file says of the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// Rows: of JSON Lines an estimate, unless the file is short.
    pub rows: f64,
    /// Bytes of the text in them, about.
    pub text_bytes: f64,
}
