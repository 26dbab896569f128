"""The canary: a small mixture-of-experts model that solves word problems, and collapses as a real model does."""
