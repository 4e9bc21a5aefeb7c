//! The manager: control socket, HTTP and JSON.
