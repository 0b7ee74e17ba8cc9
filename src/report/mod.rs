//! Runs as people want to see them: one self-contained HTML page, or text for a terminal.
//!
//! Contract: renderers are pure functions from plain data to a `String`; pages need no network and
//! no JavaScript, follow the reader's light or dark theme, and escape every text. Reading run
//! directories is confined to [`compare`] and [`samples`]. Interactive charts are left out.

pub mod compare;
pub mod curve;
pub mod demo;
pub mod samples;

mod axis;
mod bars;
mod demo_html;
mod demo_text;
mod html;
mod line;
mod terminal;
