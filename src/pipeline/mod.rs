//! Makes data: number-sequence problems and the reflection samples that answer them.

pub mod families;
pub mod procedural;
