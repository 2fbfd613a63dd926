//! The parsed command line.

use crate::{
    config::{GatewayConfig, RegisterConfig},
    demo, device,
};

/// The parsed command.
#[derive(Debug)]
pub enum Command {
    /// Run a gateway.
    Gateway(Box<GatewayConfig>, log::LevelFilter),
    /// Run a stdio server and register it at a gateway.
    Register(Box<RegisterConfig>, log::LevelFilter),
    /// Run the built-in device server.
    Device(device::DeviceOptions),
    /// Run the demo.
    Demo(demo::DemoOptions, log::LevelFilter),
    /// Print this text and exit.
    Print(String),
}
