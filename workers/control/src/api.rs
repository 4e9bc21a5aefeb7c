//! The endpoints: a request and the daemon's state in, a response out.

use crate::Source;
use crate::http::{Request, Response};
use crate::metrics;
use crate::status::{SCHEMA_VERSION, Status};
use serde_json::{Value, json};

/// Media type of the Prometheus text format, version 0.0.4.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a request.
pub fn answer(request: &Request, source: &dyn Source) -> Response {
    let path = request.path.as_str();
    if !["/v1", "/v1/status", "/v1/health", "/v1/metrics", "/metrics"].contains(&path) {
        return Response::error(404, "no such endpoint; GET /v1 lists them");
    }
    if !["GET", "HEAD"].contains(&request.method.as_str()) {
        let mut response = Response::error(405, "this endpoint can only be read: use GET");
        response.allow = Some("GET, HEAD");
        return response;
    }
    match path {
        "/v1/status" => Response::json(200, &status_json(&source.status())),
        "/v1/health" => Response::json(200, &health_json(&source.status())),
        "/v1" => Response::json(
            200,
            &json!({
                "schema_version": SCHEMA_VERSION,
                "endpoints": ["/v1/status", "/v1/health", "/v1/metrics"],
            }),
        ),
        _ => Response {
            status: 200,
            media_type: METRICS_TYPE,
            allow: None,
            body: metrics::text(&source.status()).into_bytes(),
        },
    }
}

/// The status with the ratio that everybody would compute.
fn status_json(status: &Status) -> Value {
    let mut value = serde_json::to_value(status).expect("a status has no keys but names");
    value["io"]["disk_ops_per_client_op"] = json!(status.io.disk_ops_per_client_op());
    value
}

fn health_json(status: &Status) -> Value {
    let health = &status.health;
    json!({
        "schema_version": SCHEMA_VERSION,
        "time": status.time,
        "array": status.array.name,
        "verdict": health.verdict,
        "reasons": health.reasons,
        "next": health.next,
    })
}
