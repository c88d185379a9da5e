// The moments of proxy normalisation and their gradients: a weighted sum over fixed points for each channel.
//
// In TensorFlow's operations this is some twenty of them on [points, channels] for every norm of the network, more than
// half of all the nodes of its graph. Here it is one, whose intermediate values stay in the cache; channels are lanes.

#pragma once

#include "kernels.h"

struct Points {
  int64_t count;
  const float *nodes, *weights;
};

// float32 [channels] each.
struct Proxy {
  const float *gamma, *beta, *proxy_gamma, *proxy_beta;
};

constexpr int64_t kProxyLanes = 32;

// Calls body(first channel, lanes) for pieces of the channels, side by side.
template <class Body>
void pieces(int64_t channels, Body body) {
  Pool::get().run((channels + kProxyLanes - 1) / kProxyLanes, [&](int64_t t) {
    body(t * kProxyLanes, int(std::min(kProxyLanes, channels - t * kProxyLanes)));
  });
}

// The proxy variable of a channel at a point is a * node + b.
struct ProxyLine {
  ProxyLine(const Proxy& given, int64_t first, int lanes) {
    for (int i = 0; i < lanes; ++i) {
      const float gamma = given.gamma[first + i];
      a[i] = gamma * (1.f + given.proxy_gamma[first + i]);
      b[i] = gamma * given.proxy_beta[first + i] + given.beta[first + i];
    }
  }
  float a[kProxyLanes] = {}, b[kProxyLanes] = {};
};

// mean and 1 / sqrt(variance + epsilon) of activation(a * node + b) over the points.
template <class Activation>
void proxy_moments(int64_t channels, const Points& points, const Proxy& given, float epsilon, float* mean,
                   float* inv_std) {
  pieces(channels, [&](int64_t first, int lanes) {
    const ProxyLine line(given, first, lanes);
    std::vector<float> values(points.count * kProxyLanes);
    float sum[kProxyLanes] = {}, squares[kProxyLanes] = {};
    for (int64_t p = 0; p < points.count; ++p) {
      const float node = points.nodes[p], weight = points.weights[p];
      float* z = &values[p * kProxyLanes];
INDEPENDENT_ITERATIONS
      for (int i = 0; i < kProxyLanes; ++i) {
        z[i] = Activation::value(node * line.a[i] + line.b[i]);
        sum[i] += weight * z[i];
      }
    }
    for (int64_t p = 0; p < points.count; ++p) {
      const float weight = points.weights[p];
      const float* z = &values[p * kProxyLanes];
INDEPENDENT_ITERATIONS
      for (int i = 0; i < kProxyLanes; ++i) squares[i] += weight * ((z[i] - sum[i]) * (z[i] - sum[i]));
    }
    for (int i = 0; i < lanes; ++i) {
      mean[first + i] = sum[i];
      inv_std[first + i] = float(1. / std::sqrt(double(squares[i]) + double(epsilon)));
    }
  });
}

// The gradients with respect to the four parameters, from those with respect to mean and inv_std.
template <class Activation>
void proxy_moments_gradient(int64_t channels, const Points& points, const Proxy& given, const float* mean,
                            const float* inv_std, const float* dmean, const float* dinv_std, float* dgamma,
                            float* dbeta, float* dproxy_gamma, float* dproxy_beta) {
  pieces(channels, [&](int64_t first, int lanes) {
    const ProxyLine line(given, first, lanes);
    // d value at a point = weight * (constant + linear * value)
    float constant[kProxyLanes] = {}, linear[kProxyLanes] = {}, da[kProxyLanes] = {}, db[kProxyLanes] = {};
    for (int i = 0; i < lanes; ++i) {
      const int64_t c = first + i;
      linear[i] = -dinv_std[c] * inv_std[c] * inv_std[c] * inv_std[c];  // twice the gradient of the variance
      constant[i] = dmean[c] - linear[i] * mean[c];
    }
    for (int64_t p = 0; p < points.count; ++p) {
      const float node = points.nodes[p], weight = points.weights[p];
INDEPENDENT_ITERATIONS
      for (int i = 0; i < kProxyLanes; ++i) {
        float slope;
        const float z = Activation::value_and_slope(node * line.a[i] + line.b[i], &slope);
        const float du = weight * (constant[i] + linear[i] * z) * slope;
        da[i] += du * node;
        db[i] += du;
      }
    }
    for (int i = 0; i < lanes; ++i) {
      const int64_t c = first + i;
      dgamma[c] = da[i] * (1.f + given.proxy_gamma[c]) + db[i] * given.proxy_beta[c];
      dbeta[c] = db[i];
      dproxy_gamma[c] = da[i] * given.gamma[c];
      dproxy_beta[c] = db[i] * given.gamma[c];
    }
  });
}
