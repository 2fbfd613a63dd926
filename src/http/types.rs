//! HTTP methods and status codes.
//!
//! The only file that names `http_types`. Nothing else of that crate is used: its header values
//! accept line ends and its length parsing is lax. [`super::head`], [`super::body`] and
//! [`super::response`] handle fields and framing instead.

pub use http_types::{Method, StatusCode};
