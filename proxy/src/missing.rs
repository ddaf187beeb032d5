//! What of etcd this version does not have. It is registered all the same, so that a client reads what is missing instead
//! of a bare "unimplemented".
//!
//! Authentication answers two calls truthfully, because clients make them on their own: it is off.

use std::sync::Arc;

use braid_proto::error;
use braid_proto::etcd::etcdserverpb::auth_server::Auth;
use braid_proto::etcd::etcdserverpb::*;
use tonic::{Request, Response, Status};

use crate::shared::Shared;

/// What a client is told about something that is not there.
pub fn missing(what: &str) -> Status {
    let verb = if what.ends_with('s') { "are" } else { "is" };
    Status::unimplemented(format!("braid: {what} {verb} not available in this version"))
}

/// Auth: it is off and cannot be switched on.
pub struct AuthService {
    shared: Arc<Shared>,
}

impl AuthService {
    /// A service on `shared`.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

macro_rules! refuse {
    ($what:literal: $($method:ident($request:ty) -> $response:ty;)*) => {
        $(fn $method<'a, 'f>(&'a self, _: Request<$request>) -> BoxFuture<'f, $response>
        where
            'a: 'f,
            Self: 'f,
        {
            Box::pin(async { Err(missing($what)) })
        })*
    };
}

/// What the methods of a service return.
type BoxFuture<'f, T> = std::pin::Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'f>>;

impl Auth for AuthService {
    fn auth_status<'a, 'f>(&'a self, _: Request<AuthStatusRequest>) -> BoxFuture<'f, AuthStatusResponse>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async {
            let header = self.shared.header(self.shared.revision().await);
            Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
        })
    }

    fn authenticate<'a, 'f>(&'a self, _: Request<AuthenticateRequest>) -> BoxFuture<'f, AuthenticateResponse>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async { Err(error::AUTH_NOT_ENABLED.into()) })
    }

    refuse! { "authentication":
        auth_enable(AuthEnableRequest) -> AuthEnableResponse;
        auth_disable(AuthDisableRequest) -> AuthDisableResponse;
        user_add(AuthUserAddRequest) -> AuthUserAddResponse;
        user_get(AuthUserGetRequest) -> AuthUserGetResponse;
        user_list(AuthUserListRequest) -> AuthUserListResponse;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
        role_list(AuthRoleListRequest) -> AuthRoleListResponse;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    }
}
