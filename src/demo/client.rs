//! The MCP client of the demo, in the newest protocol that the gateway speaks.

use std::io;

use super::{gateway::DemoGateway, legacy::SessionClient, stateless::StatelessClient};
use crate::{
    jsonrpc::quote,
    mcp::{self, version::V2026_07_28},
};

/// A minimal client.
pub enum DemoClient<'a> {
    /// It speaks MCP 2026-07-28.
    Stateless(StatelessClient<'a>),
    /// It has a session.
    Session(SessionClient<'a>),
}

impl<'a> DemoClient<'a> {
    /// Asks the gateway for the stateless protocol, and opens a session if it does not speak it.
    pub async fn connect(gateway: &'a DemoGateway) -> io::Result<Self> {
        match StatelessClient::connect(gateway).await? {
            Some(client) => Ok(Self::Stateless(client)),
            None => Ok(Self::Session(SessionClient::connect(gateway).await?)),
        }
    }

    /// Returns the newest version of the protocol.
    pub fn version(&self) -> &'static str {
        match self {
            Self::Stateless(_) => V2026_07_28,
            Self::Session(_) => mcp::LATEST,
        }
    }

    /// Waits until `tool` is listed, and returns the names of all tools.
    pub async fn wait_for_tools(&mut self, tool: &str) -> io::Result<Vec<String>> {
        match self {
            Self::Stateless(client) => client.wait_for_tools(tool).await,
            Self::Session(client) => client.wait_for_tools(tool).await,
        }
    }

    /// Calls a tool without arguments, and returns the whole response message.
    pub async fn call(&mut self, tool: &str) -> io::Result<String> {
        let params = format!("\"name\":{},\"arguments\":{{}}", quote(tool));
        match self {
            Self::Stateless(client) => client.ask("tools/call", Some(tool), &params).await,
            Self::Session(client) => client.ask("tools/call", &format!("{{{params}}}")).await,
        }
    }
}
