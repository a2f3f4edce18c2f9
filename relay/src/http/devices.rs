//! `/v1/devices` and `/v1/devices/{device}`: the registry, from outside. There is no second door into it.

use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use moorline_proto::api::{Device, DeviceKey, DeviceList, Online, PutDevice};
use moorline_proto::causes::Causes;
use moorline_proto::claims::Action;
use moorline_proto::id::DeviceId;
use moorline_proto::problem::ProblemCode;
use moorline_proto::proof::PublicKey;
use moorline_proto::whole::Whole;

use crate::access::is_usable;
use crate::access::permit::AdminPermit;
use crate::access::policy::Resource;
use crate::core::Core;
use crate::device_changes::{self, ChangeError};
use crate::directory::Location;
use crate::http::body;
use crate::http::operation::{Authorized, Operation, Params, parse};
use crate::http::problem::Refusal;
use crate::limits::{DEVICE_PAGE, DEVICE_PAGE_MAX};
use crate::store::{self, Cursor, DeviceRecord, Page, StoreError};

/// The devices that the caller may see, a page at a time: `?after=CURSOR&max=N`.
#[derive(Debug)]
pub(super) struct List {
    after: Option<Cursor>,
    max: usize,
}

impl Operation for List {
    type Permit = AdminPermit;

    async fn read(_core: &Core, _params: &Params, request: &mut Request) -> Result<Self, Refusal> {
        let (after, max) = page(request.uri().query().unwrap_or_default())?;
        Ok(Self { after, max })
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(Resource::ALL)
    }

    async fn run(self, core: Arc<Core>, Authorized { caller, .. }: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        let readable = caller.devices_for(Action::DeviceRead);
        let page = Page::read(core.registry.as_ref(), &readable, self.after.as_ref(), self.max).await;
        let page = page.map_err(|error| registry_failed(&error))?;
        let devices = page.devices.iter().map(|record| row(&core, record)).collect();
        Ok(Json(DeviceList { devices, next: page.next.map(|cursor| cursor.to_string()) }).into_response())
    }
}

/// The parameters of a query whose form is good: each of them stands once, if at all.
fn page(query: &str) -> Result<(Option<Cursor>, usize), Refusal> {
    let (mut after, mut max) = (None, DEVICE_PAGE);
    for (name, value) in query.split('&').filter_map(|part| part.split_once('=').or(Some((part, "")))) {
        match name {
            "after" => after = Some(parse(value)?),
            "max" => {
                let number: Whole = value.parse().map_err(|error| Refusal::new(ProblemCode::Malformed, format!("max: {error}")))?;
                max = usize::try_from(number.get()).unwrap_or(DEVICE_PAGE_MAX).clamp(1, DEVICE_PAGE_MAX);
            }
            _ => {}
        }
    }
    Ok((after, max))
}

fn row(core: &Core, record: &DeviceRecord) -> Device {
    let online = match core.directory.find(&record.device) {
        Location::Here(handle) => Some(Online {
            node: core.node.clone(),
            session: handle.about().session.to_string(),
            since: handle.about().since,
            address: handle.about().address,
            agent: handle.about().agent.clone(),
            services: handle.services().to_vec(),
            hostname: handle.about().hostname.clone(),
            os: handle.about().os.clone(),
            streams: core.streams.of_device(&record.device),
        }),
        Location::Node(_) | Location::Offline => None,
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
        last_seen: if online.is_some() { Some(core.clock.now()) } else { record.last_seen },
        online,
    }
}

fn unknown(device: &DeviceId) -> Refusal {
    Refusal::new(ProblemCode::DeviceUnknown, format!("there is no device {device}"))
}

fn registry_failed(error: &StoreError) -> Refusal {
    tracing::error!(error = %Causes(error), "the registry failed");
    Refusal::new(ProblemCode::Internal, "the registry did not answer")
}

fn change_failed(error: &ChangeError) -> Refusal {
    match error {
        ChangeError::Store(conflict @ StoreError::Conflict { .. }) => Refusal::new(ProblemCode::Conflict, conflict.to_string()),
        ChangeError::Store(error) => registry_failed(error),
        ChangeError::NotPermitted => Refusal::new(ProblemCode::Forbidden, error.to_string()),
        ChangeError::Interrupted => Refusal::new(ProblemCode::Draining, error.to_string()),
    }
}

async fn found(core: &Core, device: &DeviceId) -> Result<Device, Refusal> {
    let record = core.registry.device(device).await.map_err(|error| registry_failed(&error))?;
    Ok(row(core, &record.ok_or_else(|| unknown(device))?))
}

/// One device. One that the caller may not see looks like one that does not exist.
#[derive(Debug)]
pub(super) struct Show(DeviceId);

impl Operation for Show {
    type Permit = AdminPermit;

    async fn read(_core: &Core, params: &Params, _request: &mut Request) -> Result<Self, Refusal> {
        params.parse("device").map(Self)
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(Resource::device(&self.0))
    }

    async fn run(self, core: Arc<Core>, _authorized: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        Ok(Json(found(&core, &self.0).await?).into_response())
    }
}

/// Adds a device, or replaces its keys: 201 or 200. Channels and streams that stand on a key that is gone now are ended.
#[derive(Debug)]
pub(super) struct Put {
    device: DeviceId,
    keys: Vec<PublicKey>,
}

impl Operation for Put {
    type Permit = AdminPermit;

    async fn read(_core: &Core, params: &Params, request: &mut Request) -> Result<Self, Refusal> {
        let device = params.parse("device")?;
        let PutDevice { keys } = body::json(std::mem::take(request.body_mut())).await?;
        let malformed = |detail: String| Refusal::new(ProblemCode::Malformed, detail);
        let keys: Vec<PublicKey> = keys.into_iter().map(|key| key.0).collect();
        if keys.is_empty() {
            return Err(malformed("keys: at least one key".to_owned()));
        }
        if let Some(useless) = keys.iter().position(|key| !is_usable(key)) {
            return Err(malformed(format!("keys[{useless}]: no point of its curve, so nobody has its private key")));
        }
        let repeated = (1..keys.len()).find_map(|at| Some((keys[..at].iter().position(|key| *key == keys[at])?, at)));
        if let Some((first, second)) = repeated {
            return Err(malformed(format!("keys[{second}]: the same key as keys[{first}]; send it once")));
        }
        Ok(Self { device, keys })
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(Resource::device(&self.device))
    }

    async fn run(self, core: Arc<Core>, Authorized { permit, .. }: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        let put = device_changes::put(&core, permit, self.keys).await.map_err(|error| change_failed(&error))?;
        let status = match put {
            store::Put::Created => StatusCode::CREATED,
            store::Put::Replaced => StatusCode::OK,
        };
        Ok((status, Json(found(&core, &self.device).await?)).into_response())
    }
}

/// Removes a device: 204. Its connection and its streams end.
#[derive(Debug)]
pub(super) struct Remove(DeviceId);

impl Operation for Remove {
    type Permit = AdminPermit;

    async fn read(_core: &Core, params: &Params, _request: &mut Request) -> Result<Self, Refusal> {
        params.parse("device").map(Self)
    }

    fn resource(&mut self, _core: &Core) -> Result<Resource<'_>, Refusal> {
        Ok(Resource::device(&self.0))
    }

    async fn run(self, core: Arc<Core>, Authorized { permit, .. }: Authorized<AdminPermit>) -> Result<Response, Refusal> {
        let removed = device_changes::remove(&core, permit).await.map_err(|error| change_failed(&error))?;
        if removed { Ok(StatusCode::NO_CONTENT.into_response()) } else { Err(unknown(&self.0)) }
    }
}
