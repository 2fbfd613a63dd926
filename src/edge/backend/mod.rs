//! Backends that run an MCP server for the edge. One kind so far: [`stdio`], a child process.

pub mod stdio;
