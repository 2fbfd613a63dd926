//! The local health check (`--port`): 200 while the edge is registered and the server runs, 503
//! otherwise.

use std::sync::Arc;

use smol::Task;

use super::state::EdgeState;
use crate::{
    config::RegisterConfig,
    error::FatalError,
    http::{
        conn::Step,
        head::Request,
        response::Response,
        types::{Method, StatusCode},
    },
    limits::HttpLimits,
    net::{
        http_conn::HttpConnection,
        listener::{self, Listener},
        stream::Stream,
    },
    router::Policy,
    runtime::{executor, shutdown::Shutdown, task_tracker::TaskTracker},
};

/// Binds the local port, on loopback only. Returns `None` if no port was configured.
///
/// # Errors
/// One line that names the port.
pub fn bind(config: &RegisterConfig) -> Result<Option<Vec<Listener>>, FatalError> {
    if config.port == 0 {
        return Ok(None);
    }
    listener::bind(None, config.port, true).map(Some)
}

/// Serves the health check until the returned tasks are dropped.
pub fn serve(
    listeners: Vec<Listener>,
    state: Arc<EdgeState>,
    config: &RegisterConfig,
    stopped: Shutdown,
) -> Vec<Task<()>> {
    let check = Arc::new(Check {
        state,
        stopped,
        paths: config.health_paths.clone(),
        cors: config.cors,
        limits: config.limits.http.clone(),
        policy: Policy { allow_origins: vec!["*".into()], ..Policy::default() },
    });
    let tracker = TaskTracker::new();
    let accept = |mut listener: Listener| {
        let (check, tracker) = (check.clone(), tracker.clone());
        log::info!("health check on http://{}{}", listener.local(), check.paths.join(" "));
        executor::spawn(async move {
            loop {
                let stream = listener.accept().await;
                if tracker.len() >= check.limits.connections {
                    continue;
                }
                let (check, guard) = (check.clone(), tracker.track());
                let answer = async move {
                    let _held = guard;
                    check.connection(stream).await;
                };
                executor::spawn_guarded(answer, || log::error!("a health check request panicked"));
            }
        })
    };
    listeners.into_iter().map(accept).collect()
}

struct Check {
    state: Arc<EdgeState>,
    stopped: Shutdown,
    paths: Vec<String>,
    cors: bool,
    limits: HttpLimits,
    policy: Policy,
}

impl Check {
    async fn connection(&self, stream: Stream) {
        let mut web = HttpConnection::new(stream, &self.limits, self.stopped.clone(), self.stopped.clone());
        loop {
            match web.advance().await {
                Ok(Step::Request(request)) => web.answer(&self.answer(&request)),
                Ok(Step::Refuse(response)) => web.answer(&response),
                Ok(_) => return web.finish().await,
                Err(_) => return,
            }
        }
    }

    fn answer(&self, request: &Request) -> Response {
        if let Err(why) = self.policy.admit(request, None) {
            return Response::new(StatusCode::Forbidden).text(why.reason());
        }
        if !self.paths.iter().any(|path| path == request.path()) {
            return Response::new(StatusCode::NotFound).text("not found\n");
        }
        if !matches!(request.method(), Method::Get | Method::Head) {
            return Response::new(StatusCode::MethodNotAllowed).field("Allow", "GET, HEAD");
        }
        let trouble = |why: &str| Response::new(StatusCode::ServiceUnavailable).text(why);
        let response = match (self.state.is_registered(), self.state.is_served()) {
            (true, true) => Response::new(StatusCode::Ok).text("ok"),
            (false, _) => trouble("not connected to the gateway"),
            (true, false) => trouble("the server is down"),
        };
        let response = response.field("Cache-Control", "no-store");
        if self.cors { response.field("Access-Control-Allow-Origin", "*") } else { response }
    }
}
