//! `mcpport demo`: runs a gateway, the built-in server behind it, and a real call between them.
//!
//! Part of the shell layer, because it uses both programs; has its own small MCP client.

mod client;
mod gateway;
mod legacy;
mod stateless;

use std::{
    env,
    future::pending,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
};

use futures_lite::future;

use self::{
    client::DemoClient,
    gateway::{DemoGateway, broken},
};
use crate::{
    command::CommandLine,
    config::{ClientTls, EraPin, GatewayConfig, GatewayUrl, RegisterConfig, Restart, ServerTls},
    edge,
    error::FatalError,
    gateway::Bound,
    jsonrpc::{Message, elements, find, unquote},
    limits::{self, Limits},
    net::{random, timeout, tls::Connector},
    router::REGISTER_PATH,
    util,
};

/// Options of the demo.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Port of the gateway; 0 picks a free one.
    pub port: u16,
    /// Exit after the call.
    pub once: bool,
    /// Use TLS, in the gateway and in its clients.
    pub tls: Option<Tls>,
}

/// The certificates of a demo over TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Key and certificate of the gateway; the certificate must include 127.0.0.1.
    pub server: ServerTls,
    /// PEM file with the CA of this certificate.
    pub ca: PathBuf,
}

/// Name of the registered server.
const SERVER: &str = "device";
/// The tool that the demo calls, by its exposed name.
const TOOL: &str = "device_system";

/// Runs the demo until `stop` is ready, or until the call is done if `once` is set.
///
/// # Errors
/// One line: for example, the port is in use, or the call failed.
pub async fn run(options: DemoOptions, stop: impl Future<Output = ()>) -> Result<(), FatalError> {
    let trust =
        options.tls.as_ref().map(|tls| ClientTls { ca: Some(tls.ca.clone()), ..ClientTls::default() });
    let connector = trust.as_ref().map(Connector::new).transpose()?;
    let bound = Bound::new(GatewayConfig {
        port: options.port,
        tls: options.tls.as_ref().map(|tls| tls.server.clone()),
        ..GatewayConfig::default()
    })?;
    let Some(address) = bound.addresses().first().copied() else {
        return Err(FatalError::run("the gateway has no listening address"));
    };
    let edge_config = register_config(address, trust)?;
    let gateway = DemoGateway { address, tls: connector, authority: options.tls.map(|tls| tls.ca) };
    let (trigger, stopped) = crate::runtime::shutdown::shutdown();
    let stop = async {
        stop.await;
        Ok(())
    };
    let work = async {
        let result = future::or(stop, play(&gateway, options.once)).await;
        drop(trigger);
        result
    };
    // `edge::run` returns `Ok` only after a stop, so `try_zip` does not hide the result of `work`.
    let (edge_ends, edge_ended) = crate::runtime::shutdown::shutdown();
    let edge = async move {
        let result = edge::run(edge_config, stopped.wait()).await;
        drop(edge_ends);
        result
    };
    // Stop the gateway last, so that the edge does not log a lost link.
    let served = bound.serve(async move { edge_ended.wait().await });
    let both = future::zip(served, future::try_zip(work, edge));
    both.await.1.map(|_| ())
}

/// Makes the call, then prints further instructions and waits forever unless `once` is set.
async fn play(gateway: &DemoGateway, once: bool) -> Result<(), FatalError> {
    let limit = limits::DEMO_TIME;
    match timeout::within(limit, show(gateway)).await {
        Ok(Ok(())) if once => {
            say("\nWithout --once it keeps serving and prints a configuration to paste into a client.");
            Ok(())
        }
        Ok(Ok(())) => {
            invite(gateway);
            pending().await
        }
        Ok(Err(error)) => Err(FatalError::run(format!("the demo call failed: {error}"))),
        Err(_) => {
            Err(FatalError::run(format!("the demo call did not complete within {} s", limit.as_secs())))
        }
    }
}

fn register_config(gateway: SocketAddr, tls: Option<ClientTls>) -> Result<RegisterConfig, FatalError> {
    let program = env::current_exe()
        .map_err(|error| FatalError::run(format!("cannot find the path of this executable: {error}")))?;
    Ok(RegisterConfig {
        command: CommandLine::Direct(vec![program.to_string_lossy().into_owned(), "device".into()]),
        gateway: GatewayUrl {
            tls: tls.is_some(),
            host: gateway.ip().to_string(),
            port: gateway.port(),
            target: REGISTER_PATH.into(),
        },
        name: SERVER.into(),
        id: random::uuid()?,
        headers: Vec::new(),
        header_file: None,
        tls: tls.unwrap_or_default(),
        sessions: None,
        era: EraPin::Auto,
        restart: Restart::OnFailure,
        require_gateway: false,
        port: 0,
        cors: false,
        health_paths: Vec::new(),
        threads: 1,
        busy_poll: true,
        limits: Limits::default(),
    })
}

fn say(line: &str) {
    // Ignore errors: standard output may be closed.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Makes the call like any client and prints the result.
async fn show(gateway: &DemoGateway) -> io::Result<()> {
    let (http, ws, address) = (gateway.scheme("http"), gateway.scheme("ws"), gateway.address);
    say(&format!("gateway   {http}://{address}/mcp"));
    let mut client = DemoClient::connect(gateway).await?;
    let tools = client.wait_for_tools(TOOL).await?;
    say(&format!("server    '{SERVER}' behind {ws}://{address}{REGISTER_PATH}"));
    say(&format!("tools     {}", tools.join(", ")));
    let answer = client.call(TOOL).await?;
    let answer = Message::read(&answer).map_err(|why| broken(why.reason()))?;
    let result = answer.result().ok_or_else(|| broken("the tool returned an error"))?;
    say(&format!("call      {TOOL} through the tunnel (MCP {}):", client.version()));
    for line in first_text(result).ok_or_else(|| broken("the tool returned no text"))?.lines() {
        say(&format!("          {}", util::escape::show(line)));
    }
    Ok(())
}

/// Prints the instructions for clients and further servers.
fn invite(gateway: &DemoGateway) {
    let (http, ws, address) = (gateway.scheme("http"), gateway.scheme("ws"), gateway.address);
    say("\nPaste this into the configuration of an MCP client:\n");
    say(&format!(
        "  {{\"mcpServers\": {{\"mcpport\": {{\"type\": \"http\", \"url\": \"{http}://{address}/mcp\"}}}}}}\n"
    ));
    say(&format!(
        "(for older clients: \"type\": \"sse\" and {http}://{address}/sse), and register servers:\n"
    ));
    // Use the program's name as invoked: it may not be in PATH.
    let program = env::args().next().unwrap_or_else(|| "mcpport".into());
    let trust = gateway.authority.as_ref().map(|file| format!(" --ssl-ca-cert {}", file.display()));
    say(&format!(
        "  {program} register --stdio \"npx -y @modelcontextprotocol/server-filesystem ./\" --server-name file --gateway-url {ws}://{address}{REGISTER_PATH}{}\n",
        trust.unwrap_or_default()
    ));
    say("Serving until Ctrl-C.");
}

fn first_text(result: &str) -> Option<String> {
    let content = find(result, 0..result.len(), &["content"]).ok()??;
    let first = elements(result, content).next()?;
    let text = find(result, first, &["text"]).ok()??;
    unquote(&result[text]).map(|text| text.into_owned())
}
