//! `/v1/devices` and `/v1/devices/{device}`: the registry, from outside. There is no second door into it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use http::StatusCode;
use moorline_proto::api::{Device, DeviceKey, DeviceList, Online, PutDevice};
use moorline_proto::claims::{Action, Pattern};
use moorline_proto::close::CloseReason;
use moorline_proto::id::DeviceId;
use moorline_proto::problem::ProblemCode;
use moorline_proto::proof::PublicKey;
use tracing::info;

use crate::access::is_usable;
use crate::access::policy::On;
use crate::access::token::Caller;
use crate::control::handle::DisconnectCommand;
use crate::directory::Place;
use crate::http::body;
use crate::http::problem::Refusal;
use crate::http::{Edge, parse, registry_failed, visitor};
use crate::store::{Cursor, DeviceRecord, Page, Put, StoreError};

/// Rows of a page where nothing else is asked for.
const PAGE: usize = 100;
/// Rows of a page at most.
const PAGE_MAX: usize = 500;

/// The devices that the caller may read, a page at a time: `?after=CURSOR&most=N`.
///
/// # Errors
/// The token's, `forbidden` without `device.read` on any device, `malformed`.
pub async fn list(State(edge): State<Arc<Edge>>, request: Request) -> Result<Json<DeviceList>, Refusal> {
    let (after, max) = page(request.uri().query().unwrap_or_default())?;
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let _permit = edge.act(&caller, Action::DeviceRead, On::ALL, &visitor)?;
    let page = Page::read(edge.registry.as_ref(), &readable(&caller), after.as_ref(), max).await;
    let page = page.map_err(|error| registry_failed(&error))?;
    let devices = page.devices.iter().map(|record| row(&edge, record)).collect();
    Ok(Json(DeviceList { devices, next: page.next.map(|cursor| cursor.to_string()) }))
}

/// The ids of the devices that the caller may read.
fn readable(caller: &Caller) -> Vec<Pattern> {
    let rules = caller.access.iter().filter(|rule| rule.actions.contains(&Action::DeviceRead));
    rules.flat_map(|rule| rule.devices.iter().cloned()).collect()
}

fn page(query: &str) -> Result<(Option<Cursor>, usize), Refusal> {
    let malformed = |detail: String| Refusal::new(ProblemCode::Malformed, detail);
    let (mut after, mut max) = (None, None);
    for (name, value) in query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap_or((part, ""))) {
        match name {
            "after" if after.is_none() => after = Some(parse(value)?),
            "most" if max.is_none() => {
                let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
                let number = value.parse().ok().filter(|number| is_number && (1..=PAGE_MAX).contains(number));
                max = Some(number.ok_or_else(|| malformed(format!("most: a number from 1 to {PAGE_MAX}")))?);
            }
            "after" | "most" => return Err(malformed(format!("{name}: stands twice"))),
            other => return Err(malformed(format!("there is no query parameter {other:?}"))),
        }
    }
    Ok((after, max.unwrap_or(PAGE)))
}

fn row(edge: &Edge, record: &DeviceRecord) -> Device {
    let online = match edge.directory.find(&record.device) {
        Place::Here(handle) => Some(Online {
            node: edge.node.clone(),
            session: handle.about().session.clone(),
            since: handle.about().since,
            address: handle.about().address,
            agent: handle.about().agent.clone(),
            services: handle.services().to_vec(),
            hostname: handle.about().hostname.clone(),
            os: handle.about().os.clone(),
            streams: edge.streams.of_device(&record.device),
        }),
        Place::Node(_) | Place::Nowhere => None,
    };
    let keys = record.keys.iter().map(|key| DeviceKey {
        kid: key.kid,
        algorithm: key.key.algorithm(),
        created: key.created,
        last_used: key.last_used,
    });
    Device {
        device: record.device.clone(),
        keys: keys.collect(),
        created: record.created,
        last_seen: if online.is_some() { Some(edge.clock.now()) } else { record.last_seen },
        online,
    }
}

fn unknown(device: &DeviceId) -> Refusal {
    Refusal::new(ProblemCode::DeviceUnknown, format!("there is no device {device}"))
}

/// One device.
///
/// # Errors
/// `device_unknown`, also for one that the caller may not see; the token's.
pub async fn show(State(edge): State<Arc<Edge>>, Path(device): Path<String>, request: Request) -> Result<Json<Device>, Refusal> {
    let device: DeviceId = parse(&device)?;
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let _leave = edge.act(&caller, Action::DeviceRead, On::device(&device), &visitor)?;
    let record = edge.registry.device(&device).await.map_err(|error| registry_failed(&error))?;
    Ok(Json(row(&edge, &record.ok_or_else(|| unknown(&device))?)))
}

/// Adds a device, or replaces its keys: 201 or 200. A connection that was proved with a key that is gone now is ended.
///
/// # Errors
/// `malformed`, `conflict` for a key that another device has, `forbidden`, the token's.
pub async fn put(
    State(edge): State<Arc<Edge>>,
    Path(device): Path<String>,
    request: Request,
) -> Result<(StatusCode, Json<Device>), Refusal> {
    let device: DeviceId = parse(&device)?;
    let visitor = visitor(&request)?;
    let (head, body) = request.into_parts();
    let PutDevice { keys } = body::json(body).await?;
    if keys.is_empty() {
        return Err(Refusal::new(ProblemCode::Malformed, "keys: at least one key"));
    }
    let caller = edge.caller(&head.headers, &visitor)?;
    let leave = edge.act(&caller, Action::DeviceWrite, On::device(&device), &visitor)?;
    let keys: Vec<PublicKey> = keys.into_iter().map(|key| key.0).collect();
    if let Some(useless) = keys.iter().position(|key| !is_usable(key)) {
        return Err(Refusal::new(ProblemCode::Malformed, format!("keys[{useless}]: no point of its curve, so nobody has its private key")));
    }
    let put = edge.registry.put_device(&device, &keys, edge.clock.now()).await.map_err(|error| match error {
        StoreError::Conflict { .. } => Refusal::new(ProblemCode::Conflict, error.to_string()),
        error => registry_failed(&error),
    })?;
    let status = match put {
        Put::Created => StatusCode::CREATED,
        Put::Replaced => StatusCode::OK,
    };
    if let Place::Here(handle) = edge.directory.find(&device)
        && !keys.iter().any(|key| key.thumbprint() == handle.about().kid)
    {
        handle.part(DisconnectCommand::Revoked);
    }
    info!(%device, by = %leave.caller(), ?put, "a device was registered");
    let record = edge.registry.device(&device).await.map_err(|error| registry_failed(&error))?;
    Ok((status, Json(row(&edge, &record.ok_or_else(|| unknown(&device))?))))
}

/// Removes a device: 204. Its connection and its streams end.
///
/// # Errors
/// `device_unknown`, `forbidden`, the token's.
pub async fn remove(State(edge): State<Arc<Edge>>, Path(device): Path<String>, request: Request) -> Result<StatusCode, Refusal> {
    let device: DeviceId = parse(&device)?;
    let visitor = visitor(&request)?;
    let caller = edge.caller(request.headers(), &visitor)?;
    let leave = edge.act(&caller, Action::DeviceWrite, On::device(&device), &visitor)?;
    let removed = edge.registry.remove_device(&device).await.map_err(|error| registry_failed(&error))?;
    // Streams first: those that wait for the device's answer are to hear why it does not come.
    edge.streams.cut_device(&device, CloseReason::Revoked);
    if let Place::Here(handle) = edge.directory.find(&device) {
        handle.part(DisconnectCommand::Revoked);
    }
    info!(%device, by = %leave.caller(), removed, "a device was removed");
    if removed { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&device)) }
}
