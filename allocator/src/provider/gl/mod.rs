//! OpenGL on this host: found at run time, without a display and without a DRM node.

mod survey;

pub use survey::{GlFacts, survey};
