//! Shows runs as one self-contained HTML page, or as text for a terminal.
//!
//! Renderers are pure functions from plain data to a `String`. Pages need no network and no JavaScript,
//! follow the reader's light or dark theme, and escape every text. Only [`compare`] and [`samples`] read
//! run directories. Charts are not interactive.

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
