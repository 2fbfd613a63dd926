//! The integration tests: one binary, one module for each subject.

/// `mcpport device`, driven line by line on boxes made of files.
mod device;
