"""An application for Ray Serve: an ingress that speaks the Open Inference Protocol, and replicas
that answer."""
