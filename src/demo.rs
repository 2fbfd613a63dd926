//! `mcpport demo`: a gateway, the built-in server behind it, and a real call between them, in one command.
//!
//! The shell's own: it uses both programs and is a small MCP client besides.

use std::{
    env,
    future::pending,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
};

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, future, io::BufReader};

use crate::{
    command::CommandLine,
    config::{ClientTls, GatewayConfig, GatewayUrl, RegisterConfig, Restart, ServerTls},
    fault::Fault,
    gateway::Bound,
    jsonrpc::{self, Message, elements, find, unquote},
    limits::{self, Limits},
    mcp,
    net::{deadline, exec, random, stream::Stream, tls::Connector},
    register,
    router::REGISTER_PATH,
    text,
};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port of the gateway, 0: any free one.
    pub port: u16,
    /// End after the call.
    pub once: bool,
    /// Speak TLS, at the gateway and towards it.
    pub tls: Option<Tls>,
}

/// The certificates of a demo over TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The gateway's; it has to name 127.0.0.1.
    pub server: ServerTls,
    /// PEM file with the authority that it comes from.
    pub ca: PathBuf,
}

/// Name of the server that is shown.
const SERVER: &str = "device";
/// Its tool that is called, as clients see it.
const TOOL: &str = "device_system";

/// Runs the demo until `stop` is ready, or the call is done and nothing more was asked for.
///
/// # Errors
/// One line: the port is taken, or the call failed.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), Fault> {
    let trust =
        options.tls.as_ref().map(|tls| ClientTls { ca: Some(tls.ca.clone()), ..ClientTls::default() });
    let connector = trust.as_ref().map(Connector::new).transpose()?;
    let authority = trust.as_ref().and_then(|trust| trust.ca.clone());
    let bound = Bound::new(gateway_config(options.port, options.tls.map(|tls| tls.server)))?;
    let Some(address) = bound.addresses().first().copied() else {
        return Err(Fault::run("the gateway listens nowhere"));
    };
    let edge_config = register_config(address, trust)?;
    let gateway = Gateway { address, tls: connector, authority };
    let (switch, stopped) = exec::switch();
    let shown = async {
        let shown = deadline::within(limits::DEMO_TIME, show(&gateway)).await;
        match shown {
            Ok(Ok(())) if options.once => {
                say("\nWithout --once it goes on serving, and prints what to paste into a client.");
                Ok(())
            }
            Ok(Ok(())) => {
                invite(&gateway);
                pending().await
            }
            Ok(Err(error)) => Err(Fault::run(format!("the demo call failed: {error}"))),
            Err(_) => Err(Fault::run(format!(
                "the demo call was not done within {} s",
                limits::DEMO_TIME.as_secs()
            ))),
        }
    };
    let stop = async {
        stop.await;
        Ok(())
    };
    let work = async {
        let result = future::or(stop, shown).await;
        drop(switch);
        result
    };
    let edge = async {
        let result = register::run(edge_config, stopped.wait()).await;
        // Only when it is stopped does it end well, and then the others have the last word.
        if result.is_ok() { Ok(()) } else { result }
    };
    let both = future::zip(
        async {
            let served = stopped.clone();
            bound.serve(async move { served.wait().await }).await;
        },
        future::try_zip(work, edge),
    );
    both.await.1.map(|_| ())
}

fn gateway_config(port: u16, tls: Option<ServerTls>) -> GatewayConfig {
    GatewayConfig {
        host: None,
        port,
        ipv6: false,
        timeout_rpc: limits::RPC_TIME,
        timeout_run_tool: limits::TOOL_TIME,
        sse_path: "/sse".into(),
        mcp_path: "/mcp".into(),
        messages_path: "/messages".into(),
        health_path: "/health".into(),
        status_path: "/status".into(),
        tokens: Vec::new(),
        token_file: None,
        trusted_proxies: Vec::new(),
        tls,
        allow_origins: Vec::new(),
        public_hosts: Vec::new(),
        cors: false,
        threads: 1,
        limits: Limits::default(),
    }
}

fn register_config(gateway: SocketAddr, tls: Option<ClientTls>) -> Result<RegisterConfig, Fault> {
    let program = env::current_exe()
        .map_err(|error| Fault::run(format!("cannot find the program's own file: {error}")))?;
    let random = random::bytes().map_err(|error| Fault::run(format!("no randomness: {error}")))?;
    Ok(RegisterConfig {
        command: CommandLine::Direct(vec![program.to_string_lossy().into_owned(), "device".into()]),
        gateway: GatewayUrl {
            tls: tls.is_some(),
            host: gateway.ip().to_string(),
            port: gateway.port(),
            target: REGISTER_PATH.into(),
        },
        name: SERVER.into(),
        id: text::uuid(random),
        headers: Vec::new(),
        tls: tls.unwrap_or_default(),
        sessions: None,
        restart: Restart::OnFailure,
        require_gateway: false,
        port: 0,
        cors: false,
        health_paths: Vec::new(),
        threads: 1,
        limits: Limits::default(),
    })
}

fn say(line: &str) {
    // Nobody may be there to read it.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Makes the call as any client would, and shows it.
async fn show(gateway: &Gateway) -> io::Result<()> {
    let (http, ws, address) = (gateway.scheme("http"), gateway.scheme("ws"), gateway.address);
    say(&format!("gateway   {http}://{address}/mcp"));
    let mut client = Client::connect(gateway).await?;
    let tools = client.wait_for_tools().await?;
    say(&format!("server    '{SERVER}' behind {ws}://{address}{REGISTER_PATH}"));
    say(&format!("tools     {}", tools.join(", ")));
    let params = format!("{{\"name\":\"{TOOL}\",\"arguments\":{{}}}}");
    let answer = client.ask("tools/call", &params).await?;
    let answer = Message::read(&answer).map_err(|why| broken(why.reason()))?;
    let result = answer.result().ok_or_else(|| broken("the tool gave an error"))?;
    say(&format!("call      {TOOL} through the tunnel:"));
    for line in first_text(result).ok_or_else(|| broken("the tool gave no text"))?.lines() {
        say(&format!("          {}", text::show(line)));
    }
    Ok(())
}

/// Prints what a newcomer needs next.
fn invite(gateway: &Gateway) {
    let (http, ws, address) = (gateway.scheme("http"), gateway.scheme("ws"), gateway.address);
    say("\nPaste this into the configuration of an MCP client:\n");
    say(&format!(
        "  {{\"mcpServers\": {{\"mcpport\": {{\"type\": \"http\", \"url\": \"{http}://{address}/mcp\"}}}}}}\n"
    ));
    say(&format!(
        "(for older clients: \"type\": \"sse\" and {http}://{address}/sse), and register servers:\n"
    ));
    // As this program was called, which need not be in PATH.
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

/// Where the gateway is, and how it is reached.
struct Gateway {
    address: SocketAddr,
    tls: Option<Connector>,
    /// The file of the authority that its certificate comes from.
    authority: Option<PathBuf>,
}

impl Gateway {
    /// `http` or `https`, `ws` or `wss`.
    fn scheme(&self, plain: &str) -> String {
        let secure = if self.tls.is_some() { "s" } else { "" };
        format!("{plain}{secure}")
    }

    async fn connect(&self) -> io::Result<Stream> {
        let stream = Stream::connect(self.address).await?;
        let Some(tls) = &self.tls else { return Ok(stream) };
        let secured = tls.connect(stream, &self.address.ip().to_string()).await;
        secured.map_err(|error| broken(&tls.explain(&error, &self.address.to_string())))
    }
}

/// A client of the 2024-11-05 transport, as small as it can be. It speaks HTTP/1.0, so that the event stream comes
/// without chunks.
struct Client<'a> {
    gateway: &'a Gateway,
    events: BufReader<Stream>,
    endpoint: String,
    last_id: u64,
}

impl<'a> Client<'a> {
    async fn connect(gateway: &'a Gateway) -> io::Result<Self> {
        let mut stream = gateway.connect().await?;
        let address = gateway.address;
        stream.write_all(format!("GET /sse HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut client =
            Self { gateway, events: BufReader::new(stream), endpoint: String::new(), last_id: 0 };
        client.endpoint = client.event().await?;
        let params = format!(
            "{{\"protocolVersion\":\"{}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"demo\",\"version\":\"1\"}}}}",
            mcp::LATEST
        );
        client.ask("initialize", &params).await?;
        client.post(&jsonrpc::notification("notifications/initialized", None)).await?;
        Ok(client)
    }

    /// The server comes when it comes; the gateway says when the list has changed.
    async fn wait_for_tools(&mut self) -> io::Result<Vec<String>> {
        loop {
            let answer = self.ask("tools/list", "{}").await?;
            let names = tool_names(&answer);
            if names.iter().any(|name| name == TOOL) {
                return Ok(names);
            }
            while !self.event().await?.contains("notifications/tools/list_changed") {}
        }
    }

    async fn ask(&mut self, method: &str, params: &str) -> io::Result<String> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        self.post(&jsonrpc::request(&id, method, params)).await?;
        loop {
            let event = self.event().await?;
            if Message::read(&event).is_ok_and(|message| message.id() == Some(&id)) {
                return Ok(event);
            }
        }
    }

    async fn post(&self, message: &str) -> io::Result<()> {
        let (address, endpoint) = (self.gateway.address, &self.endpoint);
        let mut stream = self.gateway.connect().await?;
        let head = format!(
            "POST {endpoint} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            message.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(message.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.starts_with("HTTP/1.1 202 ") {
            Ok(())
        } else {
            Err(broken("the gateway did not take a message"))
        }
    }

    /// The data of the next event.
    async fn event(&mut self) -> io::Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.events.read_line(&mut line).await? == 0 {
                return Err(broken("the event stream ended"));
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Ok(data.to_owned());
            }
        }
    }
}

fn tool_names(answer: &str) -> Vec<String> {
    let Ok(Some(list)) = find(answer, 0..answer.len(), &["result", "tools"]) else { return Vec::new() };
    let name = |tool| {
        let span = find(answer, tool, &["name"]).ok()??;
        unquote(&answer[span]).map(|name| name.into_owned())
    };
    elements(answer, list).filter_map(name).collect()
}

fn broken(why: &str) -> io::Error {
    io::Error::other(why)
}
