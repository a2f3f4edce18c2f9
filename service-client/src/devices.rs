//! The devices of the registry, over the relay's HTTP API: add, list, show, remove.

use http::{HeaderMap, Method};
use moorline_proto::api::{Device, DeviceList, PutDevice, RegisteredKey};
use moorline_proto::id::DeviceId;
use moorline_proto::names::{DEVICES, device_path};
use moorline_proto::problem::Problem;
use moorline_proto::proof::PublicKey;
use moorline_proto::secret::Secret;
use moorline_transport::dial::{DialError, Response, Step};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::client::Client;
use crate::open::RESPONSE_TIMEOUT;
use crate::refusal::{attempt_error, problem_of};
use crate::retry::{RetryError, retry_until};

/// The most pages of a list that are fetched: a relay whose list never ends must not occupy the client for ever.
const MAX_PAGES: usize = 10_000;

/// Why a request about devices failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The relay cannot be reached, or the peer is not a relay.
    #[error("the relay cannot be reached")]
    Unreachable(#[source] Box<DialError>),
    /// The relay refused the request.
    #[error("{} ({})", .0.detail, .0.code)]
    Refused(Box<Problem>),
    /// The relay's response breaks the protocol.
    #[error("the relay's response breaks the protocol: {0}")]
    Answer(String),
}

impl DeviceError {
    /// The relay's problem, if it refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unreachable(_) | Self::Answer(_) => None,
        }
    }
}

impl Client {
    /// The devices that the caller may see, sorted by id. Fetches all pages.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn devices(&self) -> Result<Vec<Device>, DeviceError> {
        let mut devices = Vec::new();
        let mut path = DEVICES.to_owned();
        let mut last = None;
        for _ in 0..MAX_PAGES {
            let page: DeviceList = self.request_json(Method::GET, &path, None::<&()>).await?;
            devices.extend(page.devices);
            match page.next {
                None => return Ok(devices),
                Some(next) if last.as_ref() == Some(&next) => break,
                Some(next) => {
                    path = format!("{DEVICES}?after={next}");
                    last = Some(next);
                }
            }
        }
        Err(DeviceError::Answer("the list has no end".to_owned()))
    }

    /// One device.
    ///
    /// # Errors
    /// [`DeviceError`]: `device_unknown` also for a device that the caller may not see.
    pub async fn device(&self, device: &DeviceId) -> Result<Device, DeviceError> {
        self.request_json(Method::GET, &device_path(device), None::<&()>).await
    }

    /// Adds a device with 1 to 3 public keys, or replaces all keys of an existing one.
    ///
    /// # Errors
    /// [`DeviceError`]: `conflict` for a key of another device.
    pub async fn put_device(&self, device: &DeviceId, keys: Vec<PublicKey>) -> Result<Device, DeviceError> {
        let body = PutDevice { keys: keys.into_iter().map(RegisteredKey).collect() };
        self.request_json(Method::PUT, &device_path(device), Some(&body)).await
    }

    /// Removes a device and its keys; it is disconnected and cannot reconnect.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn remove_device(&self, device: &DeviceId) -> Result<(), DeviceError> {
        self.request(Method::DELETE, &device_path(device), None::<&()>).await.map(drop)
    }

    async fn request_json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<T, DeviceError> {
        self.request(method, path, body).await?.json().map_err(|error| DeviceError::Answer(error.to_string()))
    }

    async fn request(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Response, DeviceError> {
        let body = body.map(|body| serde_json::to_string(body).expect("bodies have string keys and no values that JSON lacks"));
        let body = body.as_deref();
        self.inner.token.send(DeviceError::problem, |token| self.request_with(token, &method, path, body)).await
    }

    async fn request_with(&self, token: Option<Secret>, method: &Method, path: &str, body: Option<&str>) -> Result<Response, DeviceError> {
        let (inner, headers, deadline) = (&self.inner, HeaderMap::new(), Instant::now() + RESPONSE_TIMEOUT);
        let response = retry_until(deadline, async || {
            let request = inner.dialer.request(method.clone(), path, &headers, token.as_ref(), body.map(str::to_owned), deadline);
            request.await.and_then(Response::accepted).map_err(|error| attempt_error(error, unreachable_or_refused))
        });
        response.await.map_err(|error| match error {
            RetryError::Attempt(error) | RetryError::TimedOut(Some(error)) => error,
            RetryError::TimedOut(None) => DeviceError::Unreachable(Box::new(DialError::Deadline { step: Step::Request })),
        })
    }
}

fn unreachable_or_refused(error: DialError) -> DeviceError {
    problem_of(error).map_or_else(DeviceError::Unreachable, DeviceError::Refused)
}

#[cfg(test)]
mod tests {
    use moorline_proto::problem::ProblemCode;
    use serde_json::json;
    use tokio::join;

    use super::*;
    use crate::scripted_relay::relay;

    fn row(device: &str) -> serde_json::Value {
        json!({"device": device, "keys": [], "created": "2026-11-21T09:30:00Z"})
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_continues_after_each_page() {
        let (mut relay, client) = relay();
        let (devices, ()) = join!(client.devices(), async {
            let request = relay.request().await;
            assert_eq!((request.line.as_str(), request.header("authorization")), ("GET /v1/devices HTTP/1.1", "Bearer caller-token"));
            request.respond(200, &json!({"devices": [row("a"), row("b")], "next": "b"})).await;
            let request = relay.request().await;
            assert_eq!(request.line, "GET /v1/devices?after=b HTTP/1.1");
            request.respond(200, &json!({"devices": [], "next": "c"})).await;
            relay.request().await.respond(200, &json!({"devices": [row("d")]})).await;
        });
        let ids: Vec<String> = devices.unwrap().iter().map(|device| device.device.to_string()).collect();
        assert_eq!(ids, ["a", "b", "d"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_whose_cursors_repeat_is_an_error() {
        let (mut relay, client) = relay();
        let (devices, ()) = join!(client.devices(), async {
            for _ in 0..2 {
                relay.request().await.respond(200, &json!({"devices": [], "next": "b"})).await;
            }
        });
        assert!(matches!(devices, Err(DeviceError::Answer(_))), "{devices:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_added_with_its_key_and_removed() {
        let (mut relay, client) = relay();
        let id = "lamp-1".parse().unwrap();
        let (device, ()) = join!(client.put_device(&id, vec![PublicKey::Ed25519([7; 32])]), async {
            let request = relay.request().await;
            assert_eq!(request.line, "PUT /v1/devices/lamp-1 HTTP/1.1");
            assert_eq!(request.body["keys"][0]["crv"], "Ed25519");
            request.respond(201, &row("lamp-1")).await;
        });
        assert_eq!(device.unwrap().device, id);

        let problem = Problem::new(ProblemCode::DeviceUnknown, "there is no device lamp-1");
        let (removed, ()) = join!(client.remove_device(&id), async {
            let request = relay.request().await;
            assert_eq!(request.line, "DELETE /v1/devices/lamp-1 HTTP/1.1");
            request.refuse(&problem).await;
        });
        assert!(matches!(removed, Err(DeviceError::Refused(refused)) if *refused == problem));
    }
}
