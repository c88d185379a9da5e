// The kernels as TensorFlow operations for the CPU: G16NormActivation, G16Gate, G16ProxyMoments, G16GroupConv (of CPUs
// with AVX2) and their gradients; G16Update; G16Resize; G16Mixup; G16SmallImages; G16SmallBoxes.
//
// Only TensorFlow's C API is used, the same binary interface in every version from 2.6 on. The gradients are tied to
// their operations in Python.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "conv_small.h"
#include "exact.h"
#include "kernels.h"
#include "proxy.h"
#include "update.h"
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

namespace {

// One call of a kernel: its inputs and outputs, freed at the end.
class Call {
 public:
  explicit Call(TF_OpKernelContext* context) : context_(context), status_(TF_NewStatus()) {}
  ~Call() {
    for (TF_Tensor* tensor : tensors_) TF_DeleteTensor(tensor);
    if (TF_GetCode(status_) != TF_OK) TF_OpKernelContext_Failure(context_, status_);
    TF_DeleteStatus(status_);
  }

  bool ok() const { return TF_GetCode(status_) == TF_OK; }
  void fail(const std::string& message) { TF_SetStatus(status_, TF_INVALID_ARGUMENT, message.c_str()); }

  // After a failure this and `output` do nothing, for TensorFlow would set the status anew.
  TF_Tensor* input(int index) {
    if (!ok()) return nullptr;
    TF_Tensor* tensor = nullptr;
    TF_GetInput(context_, index, &tensor, status_);
    if (tensor) tensors_.push_back(tensor);
    return tensor;
  }

  template <class T>
  const T* input(int index, const std::vector<int64_t>& shape) {
    TF_Tensor* tensor = input(index);
    if (!tensor) return nullptr;
    if (dims(tensor) != shape) fail("input " + std::to_string(index) + " has a shape that does not fit that of x");
    return static_cast<const T*>(TF_TensorData(tensor));
  }

  // In the memory of the given input where nobody else needs that.
  template <class T>
  T* output(int index, std::vector<int64_t> shape, int instead_of = -1) {
    if (!ok()) return nullptr;
    TF_Tensor* tensor = TF_ForwardInputOrAllocateOutput(context_, &instead_of, instead_of >= 0, index, shape.data(),
                                                        int(shape.size()), nullptr, status_);
    if (!ok() || !tensor) return nullptr;
    tensors_.push_back(tensor);
    return static_cast<T*>(TF_TensorData(tensor));
  }

  static std::vector<int64_t> dims(TF_Tensor* tensor) {
    std::vector<int64_t> shape(TF_NumDims(tensor));
    for (size_t i = 0; i < shape.size(); ++i) shape[i] = TF_Dim(tensor, int(i));
    return shape;
  }

  // The shape of x, which must be [batch, height, width, channels].
  std::vector<int64_t> image(int index) {
    TF_Tensor* tensor = input(index);
    if (!tensor) return {};
    if (tensor && TF_NumDims(tensor) != 4) fail("x must be [batch, height, width, channels]");
    return dims(tensor);
  }

 private:
  TF_OpKernelContext* context_;
  TF_Status* status_;
  std::vector<TF_Tensor*> tensors_;
};

Walk walk_of(const std::vector<int64_t>& shape) { return Walk(shape[0], shape[1] * shape[2], shape[3]); }

// `value`, whose members `read(value, status)` takes from the attributes of a kernel.
template <class T, class Read>
void* configured(TF_OpKernelConstruction* construction, T* value, Read read) {
  TF_Status* status = TF_NewStatus();
  read(value, status);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return value;
}

std::string string_attribute(TF_OpKernelConstruction* construction, const char* name, TF_Status* status) {
  int32_t size = 0, total = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &size, &total, status);
  std::vector<char> text(total + 1);
  TF_OpKernelConstruction_GetAttrString(construction, name, text.data(), total, status);
  return std::string(text.data(), total);
}

template <bool grouped>
void* create(TF_OpKernelConstruction* construction) {
  return configured(construction, new Config, [=](Config* config, TF_Status* status) {
    TF_Bool strided = 0;
    if (grouped) {
      TF_OpKernelConstruction_GetAttrInt32(construction, "groups", &config->groups, status);
      TF_OpKernelConstruction_GetAttrBool(construction, "strided", &strided, status);
    }
    TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &config->epsilon, status);
    config->activation = string_attribute(construction, "activation", status);
    config->strided = strided;
  });
}

void destroy(void* config) { delete static_cast<Config*>(config); }

template <class T>
void compute(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  const std::vector<int64_t> shape = call.image(0);
  if (!call.ok()) return;
  const Walk walk = walk_of(shape);
  if (config.groups < 0 || (config.groups && walk.channels % config.groups)) {
    call.fail("groups must divide the channels");
    return;
  }
  const std::vector<int64_t> per_channel{walk.channels}, per_sample{walk.samples, walk.channels};
  T* y = call.output<T>(0, shape, 0);
  const T* x = call.input<T>(0, shape);
  Channels given;
  given.gamma = call.input<float>(1, per_channel);
  given.beta = call.input<float>(2, per_channel);
  given.centre = call.input<float>(3, per_channel);
  given.scale = call.input<float>(4, per_channel);
  float* mean = call.output<float>(1, per_sample);
  float* inv_std = call.output<float>(2, per_sample);
  float* pooled = call.output<float>(3, per_sample);
  if (!call.ok()) return;
  const auto run = config.activation == "swish"   ? forward<T, Swish>
                   : config.activation == "relu"  ? forward<T, Relu>
                   : config.activation == "relu6" ? forward<T, Relu6>
                                                  : forward<T, Linear>;
  run(walk, config, x, given, y, mean, inv_std, pooled);
}

template <class T>
void compute_gradient(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  const std::vector<int64_t> shape = call.image(2);
  if (!call.ok()) return;
  const Walk walk = walk_of(shape);
  const std::vector<int64_t> per_channel{walk.channels}, per_sample{walk.samples, walk.channels};
  T* dx = call.output<T>(0, shape, 0);
  const T* dy = call.input<T>(0, shape);
  const float* dpooled = call.input<float>(1, per_sample);
  const T* x = call.input<T>(2, shape);
  Channels given;
  given.gamma = call.input<float>(3, per_channel);
  given.beta = call.input<float>(4, per_channel);
  given.centre = call.input<float>(5, per_channel);
  given.scale = call.input<float>(6, per_channel);
  const float* mean = call.input<float>(7, per_sample);
  const float* inv_std = call.input<float>(8, per_sample);
  float* dgamma = call.output<float>(1, per_channel);
  float* dbeta = call.output<float>(2, per_channel);
  float* dcentre = call.output<float>(3, per_channel);
  float* dscale = call.output<float>(4, per_channel);
  if (!call.ok()) return;
  const auto run = config.activation == "swish"   ? backward<T, Swish>
                   : config.activation == "relu"  ? backward<T, Relu>
                   : config.activation == "relu6" ? backward<T, Relu6>
                                                  : backward<T, Linear>;
  run(walk, config, dy, dpooled, x, given, mean, inv_std, dx, dgamma, dbeta, dcentre, dscale);
}

template <class T>
void compute_multiply(void*, TF_OpKernelContext* context) {
  Call call(context);
  const std::vector<int64_t> shape = call.image(0);
  if (!call.ok()) return;
  T* y = call.output<T>(0, shape, 0);
  const T* x = call.input<T>(0, shape);
  const float* gate = call.input<float>(1, {shape[0], shape[3]});
  if (call.ok()) multiply(walk_of(shape), x, gate, y);
}

template <class T>
void compute_multiply_gradient(void*, TF_OpKernelContext* context) {
  Call call(context);
  const std::vector<int64_t> shape = call.image(1);
  if (!call.ok()) return;
  T* dx = call.output<T>(0, shape, 0);
  const T* dy = call.input<T>(0, shape);
  const T* x = call.input<T>(1, shape);
  const float* gate = call.input<float>(2, {shape[0], shape[3]});
  float* dgate = call.output<float>(1, {shape[0], shape[3]});
  if (call.ok()) multiply_gradient(walk_of(shape), dy, x, gate, dx, dgate);
}

#if defined(G16_GROUP_CONV)

void* create_conv(TF_OpKernelConstruction* construction) {
  return configured(construction, new int32_t(1), [=](int32_t* strides, TF_Status* status) {
    TF_OpKernelConstruction_GetAttrInt32(construction, "strides", strides, status);
  });
}

void destroy_conv(void* strides) { delete static_cast<int32_t*>(strides); }

// The convolution of x, input `index`, with the kernel, input `index + 1`.
GroupConv conv_of(Call& call, int index, int32_t strides) {
  const std::vector<int64_t> shape = call.image(index);
  TF_Tensor* tensor = call.input(index + 1);
  const std::vector<int64_t> kernel = tensor ? Call::dims(tensor) : std::vector<int64_t>();
  if (call.ok() && (kernel.size() != 4 || kernel[0] != kernel[1] || kernel[0] < 1 || kernel[2] != kGroup ||
                    kernel[3] != shape[3] || kernel[3] % kGroup || kernel[3] == 0 || strides < 1))
    call.fail("the kernel must be [k, k, 16, channels of x], a multiple of 16, and strides positive");
  if (!call.ok()) return GroupConv(0, 0, 0, kGroup, 1, 1);
  return GroupConv(shape[0], shape[1], shape[2], shape[3], kernel[0], strides);
}

void compute_conv(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const GroupConv conv = conv_of(call, 0, *static_cast<int32_t*>(kernel));
  if (!call.ok()) return;
  const float* x = call.input<float>(0, {conv.samples, conv.height, conv.width, conv.channels});
  const float* weights = call.input<float>(1, {conv.kernel, conv.kernel, kGroup, conv.channels});
  float* y = call.output<float>(0, {conv.samples, conv.out_height, conv.out_width, conv.channels});
  if (!call.ok() || conv.empty()) return;
  (small(conv) ? small_group_conv : group_conv)(conv, x, weights, y);
}

void compute_conv_gradient(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  const GroupConv conv = conv_of(call, 1, *static_cast<int32_t*>(kernel));
  if (!call.ok()) return;
  const std::vector<int64_t> shape{conv.samples, conv.height, conv.width, conv.channels};
  const std::vector<int64_t> kernel_shape{conv.kernel, conv.kernel, kGroup, conv.channels};
  const float* dy = call.input<float>(0, {conv.samples, conv.out_height, conv.out_width, conv.channels});
  const float* x = call.input<float>(1, shape);
  const float* weights = call.input<float>(2, kernel_shape);
  float* dx = call.output<float>(0, shape);
  float* dkernel = call.output<float>(1, kernel_shape);
  if (!call.ok()) return;
  if (conv.empty()) return void(std::fill_n(dkernel, conv.taps() * kGroup * conv.channels, 0.f));
  (small(conv) ? small_input_gradient : group_conv_input_gradient)(conv, dy, weights, dx);
  (small(conv) ? small_kernel_gradient : group_conv_kernel_gradient)(conv, dy, x, dkernel);
}

#endif

// The inputs from `first` on: the four parameters, whose length are the channels, nodes and weights.
Proxy proxy_of(Call& call, int first, int64_t* channels, Points* points) {
  TF_Tensor* gamma = call.input(first);
  *channels = gamma ? TF_TensorElementCount(gamma) : 0;
  const std::vector<int64_t> per_channel{*channels};
  Proxy given;
  given.gamma = call.input<float>(first, per_channel);
  given.beta = call.input<float>(first + 1, per_channel);
  given.proxy_gamma = call.input<float>(first + 2, per_channel);
  given.proxy_beta = call.input<float>(first + 3, per_channel);
  TF_Tensor* nodes = call.input(first + 4);
  points->count = nodes ? TF_TensorElementCount(nodes) : 0;
  points->nodes = call.input<float>(first + 4, {points->count});
  points->weights = call.input<float>(first + 5, {points->count});
  return given;
}

void compute_proxy(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  int64_t channels;
  Points points;
  const Proxy given = proxy_of(call, 0, &channels, &points);
  float* mean = call.output<float>(0, {channels});
  float* inv_std = call.output<float>(1, {channels});
  if (!call.ok()) return;
  const auto run = config.activation == "swish"  ? proxy_moments<Swish>
                   : config.activation == "relu" ? proxy_moments<Relu>
                                                 : proxy_moments<Relu6>;
  run(channels, points, given, config.epsilon, mean, inv_std);
}

void compute_proxy_gradient(void* kernel, TF_OpKernelContext* context) {
  const Config& config = *static_cast<Config*>(kernel);
  Call call(context);
  int64_t channels;
  Points points;
  const Proxy given = proxy_of(call, 4, &channels, &points);
  const float* dmean = call.input<float>(0, {channels});
  const float* dinv_std = call.input<float>(1, {channels});
  const float* mean = call.input<float>(2, {channels});
  const float* inv_std = call.input<float>(3, {channels});
  float* outputs[4];
  for (int i = 0; i < 4; ++i) outputs[i] = call.output<float>(i, {channels});
  if (!call.ok()) return;
  const auto run = config.activation == "swish"  ? proxy_moments_gradient<Swish>
                   : config.activation == "relu" ? proxy_moments_gradient<Relu>
                                                 : proxy_moments_gradient<Relu6>;
  run(channels, points, given, mean, inv_std, dmean, dinv_std, outputs[0], outputs[1], outputs[2], outputs[3]);
}

const std::map<std::string, Update>& update_rules() {
  static const std::map<std::string, Update> rules{{"rmsprop", update_of<RMSProp>()},
                                                   {"sgd", update_of<SGD>()},
                                                   {"adamw", update_of<AdamW>()},
                                                   {"lion", update_of<Lion>()},
                                                   {"average", update_of<Average>()}};
  return rules;
}

void* create_update(TF_OpKernelConstruction* construction) {
  return configured(construction, new Update(), [=](Update* update, TF_Status* status) {
    const std::string name = string_attribute(construction, "rule", status);
    const auto found = update_rules().find(name);
    if (found == update_rules().end())
      TF_SetStatus(status, TF_INVALID_ARGUMENT, ("no rule is called " + name).c_str());
    else
      *update = found->second;
  });
}

void destroy_update(void* update) { delete static_cast<Update*>(update); }

// Inputs: the rule's numbers; rate and decay of each variable; then gradients, values and slots of all of them.
void compute_update(void* kernel, TF_OpKernelContext* context) {
  const Update& update = *static_cast<Update*>(kernel);
  Call call(context);
  const int count = (TF_NumInputs(context) - 3) / (2 + update.slots);
  const float* numbers = call.input<float>(0, {update.numbers});
  const float* rate = call.input<float>(1, {count});
  const float* decay = call.input<float>(2, {count});
  std::vector<Trained> variables(call.ok() ? count : 0);
  for (int i = 0; i < count && call.ok(); ++i) {
    TF_Tensor* gradient = call.input(3 + i);
    if (!gradient) return;
    const std::vector<int64_t> shape = Call::dims(gradient);
    Trained& v = variables[i];
    v.size = TF_TensorElementCount(gradient);
    v.rate = rate[i];
    v.decay = decay[i];
    v.gradient = static_cast<const float*>(TF_TensorData(gradient));
    v.value = call.input<float>(3 + count + i, shape);
    v.new_value = call.output<float>(i, shape);
    for (int slot = 0; slot < update.slots; ++slot) {
      v.slots[slot] = call.input<float>(3 + (2 + slot) * count + i, shape);
      v.new_slots[slot] = call.output<float>((1 + slot) * count + i, shape);
    }
  }
  bool* finite = call.output<bool>((1 + update.slots) * count, {count});
  if (!call.ok()) return;
  update_all(update, numbers, variables, finite);
}

void* create_resize(TF_OpKernelConstruction* construction) {
  return configured(construction, new TF_Bool(0), [=](TF_Bool* half_pixel_centers, TF_Status* status) {
    TF_OpKernelConstruction_GetAttrBool(construction, "half_pixel_centers", half_pixel_centers, status);
  });
}

void destroy_resize(void* half_pixel_centers) { delete static_cast<TF_Bool*>(half_pixel_centers); }

// On the thread that calls it, for tf.data has an image for each.
void compute_resize(void* kernel, TF_OpKernelContext* context) {
  Call call(context);
  TF_Tensor* image = call.input(0);
  const int32_t* size = call.input<int32_t>(1, {2});
  const bool* flip = call.input<bool>(2, {});
  if (!call.ok()) return;
  const std::vector<int64_t> from = Call::dims(image);
  if (from.size() != 3 || std::count(from.begin(), from.end(), 0)) {
    call.fail("image must be [height, width, channels], none of them 0");
    return;
  }
  const int64_t height = size[0], width = size[1], channels = from[2], most = 1 << 24;
  if (height < 1 || width < 1 || height > most || width * channels > most) {
    call.fail("size must be positive, and neither rows nor the numbers in one more than 2^24");
    return;
  }
  uint8_t* to = call.output<uint8_t>(0, {height, width, channels});
  if (!call.ok()) return;
  resize(static_cast<const uint8_t*>(TF_TensorData(image)), from[0], from[1], channels, height, width, *flip,
         *static_cast<TF_Bool*>(kernel), to);
}

struct Small {
  int64_t pad, flip_stream;
  TF_Bool flip, reflect;
};

// Images uint8 [batch, ...] and the share that each keeps, float [batch].
void compute_mixup(void*, TF_OpKernelContext* context) {
  Call call(context);
  TF_Tensor* images = call.input(0);
  if (!call.ok()) return;
  const std::vector<int64_t> shape = Call::dims(images);
  if (shape.empty()) {
    call.fail("images must be [batch, ...]");
    return;
  }
  const float* kept = call.input<float>(1, {shape[0]});
  uint8_t* to = call.output<uint8_t>(0, shape);
  if (!call.ok()) return;
  const int64_t size = TF_TensorElementCount(images) / std::max<int64_t>(shape[0], 1);
  mixup(static_cast<const uint8_t*>(TF_TensorData(images)), kept, shape[0], size, to);
}

void* create_small(TF_OpKernelConstruction* construction) {
  return configured(construction, new Small{}, [=](Small* small, TF_Status* status) {
    TF_OpKernelConstruction_GetAttrInt64(construction, "pad", &small->pad, status);
    if (TF_GetCode(status) == TF_OK)
      TF_OpKernelConstruction_GetAttrInt64(construction, "flip_stream", &small->flip_stream, status);
    if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrBool(construction, "flip", &small->flip, status);
    if (TF_GetCode(status) == TF_OK)
      TF_OpKernelConstruction_GetAttrBool(construction, "reflect", &small->reflect, status);
  });
}

void destroy_small(void* small) { delete static_cast<Small*>(small); }

// On the thread that calls it: tf.data makes several batches at once.
void compute_small(void* kernel, TF_OpKernelContext* context) {
  const Small& small = *static_cast<Small*>(kernel);
  Call call(context);
  TF_Tensor* images = call.input(0);
  if (!call.ok()) return;
  const std::vector<int64_t> from = Call::dims(images);
  if (from.size() != 4 || from[3] != 3 || small.pad < 0 || small.pad >= from[1] || small.pad >= from[2]) {
    call.fail("images must be [batch, height, width, 3], larger than the shift");
    return;
  }
  const int32_t* seeds = call.input<int32_t>(1, {from[0], 2});
  uint8_t* to = call.output<uint8_t>(0, from);
  if (!call.ok()) return;
  const uint8_t* pixels = static_cast<const uint8_t*>(TF_TensorData(images));
  const int64_t one = from[1] * from[2] * 3;
  std::vector<int64_t> columns(from[2]);
  for (int64_t i = 0; i < from[0]; ++i)
    small_image(pixels + i * one, from[1], from[2], seeds + 2 * i, small.pad, small.flip, small.reflect,
                int32_t(small.flip_stream), columns, to + i * one);
}

void* create_boxes(TF_OpKernelConstruction* construction) {
  return configured(construction, new Boxes{}, [=](Boxes* boxes, TF_Status* status) {
    const auto whole = [=](const char* name, int64_t* value) {
      if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrInt64(construction, name, value, status);
    };
    const auto number = [=](const char* name, float* value) {
      if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrFloat(construction, name, value, status);
    };
    const auto flag = [=](const char* name, bool* value) {
      TF_Bool found = 0;
      if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrBool(construction, name, &found, status);
      *value = found;
    };
    whole("size", &boxes->size);
    whole("attempts", &boxes->attempts);
    whole("flip_stream", &boxes->flip_stream);
    number("area_min", &boxes->area_min);
    number("area_max", &boxes->area_max);
    number("aspect_min", &boxes->aspect_min);
    number("aspect_max", &boxes->aspect_max);
    number("covered", &boxes->covered);
    flag("flip", &boxes->flip);
    flag("half_pixel_centers", &boxes->half_pixel_centers);
  });
}

void destroy_boxes(void* boxes) { delete static_cast<Boxes*>(boxes); }

// On the thread that calls it, as `compute_small`.
void compute_boxes(void* kernel, TF_OpKernelContext* context) {
  const Boxes& boxes = *static_cast<Boxes*>(kernel);
  Call call(context);
  TF_Tensor* images = call.input(0);
  if (!call.ok()) return;
  const std::vector<int64_t> from = Call::dims(images);
  const int64_t most = 1 << 12;
  if (from.size() != 4 || from[3] != 3 || from[1] < 1 || from[2] < 1 || std::max(from[1], from[2]) > most ||
      boxes.size < 1 || boxes.size > most) {
    call.fail("images must be [batch, height, width, 3], of 1 to 4096 pixels each way as is their new size");
    return;
  }
  const int32_t* seeds = call.input<int32_t>(1, {from[0], 2});
  uint8_t* to = call.output<uint8_t>(0, {from[0], boxes.size, boxes.size, 3});
  if (!call.ok()) return;
  const uint8_t* pixels = static_cast<const uint8_t*>(TF_TensorData(images));
  std::vector<uint8_t> cut;
  for (int64_t i = 0; i < from[0]; ++i)
    small_box(pixels + i * from[1] * from[2] * 3, from[1], from[2], seeds + 2 * i, boxes, cut,
              to + i * boxes.size * boxes.size * 3);
}

// The first output is like the first input, [batch, height, width, channels]. The shapes of the others are set in
// Python, for in TensorFlow 2.6 this interface knows the first of each only.
void like_first_input(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextSetUnknownShape(context, status);
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextWithRank(context, shape, 4, shape, status);
  if (TF_GetCode(status) == TF_OK) TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

using Compute = void (*)(void*, TF_OpKernelContext*);

using Names = std::vector<const char*>;

void define_operation(const char* name, const Names& inputs, const Names& outputs, const Names& attributes,
                      void (*shape)(TF_ShapeInferenceContext*, TF_Status*) = TF_ShapeInferenceContextSetUnknownShape) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* definition = TF_NewOpDefinitionBuilder(name);
  for (const char* input : inputs) TF_OpDefinitionBuilderAddInput(definition, input);
  for (const char* output : outputs) TF_OpDefinitionBuilderAddOutput(definition, output);
  for (const char* attribute : attributes) TF_OpDefinitionBuilderAddAttr(definition, attribute);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, shape);
  TF_RegisterOpDefinition(definition, status);
  TF_DeleteStatus(status);
}

// `dtype`: that of the attribute T, where the operation has it.
void define_kernel(const char* name, void* (*create)(TF_OpKernelConstruction*), Compute compute, void (*destroy)(void*),
                   const TF_DataType* dtype = nullptr) {
  TF_Status* status = TF_NewStatus();
  TF_KernelBuilder* builder = TF_NewKernelBuilder(name, "CPU", create, compute, destroy);
  if (dtype) TF_KernelBuilder_TypeConstraint(builder, "T", *dtype, status);
  TF_RegisterKernelBuilder(name, builder, status);
  TF_DeleteStatus(status);
}

void define(const char* name, const Names& inputs, const Names& outputs, bool has_attributes, Compute float32,
            Compute bfloat16) {
  Names attributes{"T: {float, bfloat16}"};
  if (has_attributes)
    attributes.insert(attributes.end(), {"groups: int", "strided: bool", "epsilon: float", "activation: string"});
  define_operation(name, inputs, outputs, attributes, like_first_input);
  for (const auto& kernel : {std::make_pair(TF_FLOAT, float32), std::make_pair(TF_BFLOAT16, bfloat16)})
    define_kernel(name, has_attributes ? create<true> : nullptr, kernel.second, has_attributes ? destroy : nullptr,
                  &kernel.first);
}

void define_proxy(const char* name, const Names& before, const Names& outputs, Compute compute) {
  Names inputs = before;
  inputs.insert(inputs.end(), {"gamma: float", "beta: float", "proxy_gamma: float", "proxy_beta: float",
                               "nodes: float", "weights: float"});
  define_operation(name, inputs, outputs, {"epsilon: float", "activation: string"});
  define_kernel(name, create<false>, compute, destroy);
}

void define_update() {
  define_operation("G16Update",
                   {"numbers: float", "rates: float", "decays: float", "gradients: N * float", "values: N * float",
                    "slots: M * float"},
                   {"new_values: N * float", "new_slots: M * float", "finite: bool"},
                   {"N: int >= 1", "M: int >= 0", "rule: string"});
  define_kernel("G16Update", create_update, compute_update, destroy_update);
}

#if defined(G16_GROUP_CONV)

void define_conv(const char* name, const Names& inputs, const Names& outputs, Compute compute) {
  define_operation(name, inputs, outputs, {"strides: int"});
  define_kernel(name, create_conv, compute, destroy_conv);
}

#endif

void define_resize() {
  define_operation("G16Resize", {"image: uint8", "size: int32", "flip: bool"}, {"resized: uint8"},
                   {"half_pixel_centers: bool"});
  define_kernel("G16Resize", create_resize, compute_resize, destroy_resize);
}

void define_small() {
  define_operation("G16Mixup", {"images: uint8", "kept: float"}, {"mixed: uint8"}, {}, like_first_input);
  define_kernel("G16Mixup", nullptr, compute_mixup, nullptr);
  define_operation("G16SmallImages", {"images: uint8", "seeds: int32"}, {"shifted: uint8"},
                   {"pad: int", "flip: bool", "reflect: bool", "flip_stream: int"}, like_first_input);
  define_kernel("G16SmallImages", create_small, compute_small, destroy_small);
  define_operation("G16SmallBoxes", {"images: uint8", "seeds: int32"}, {"boxes: uint8"},
                   {"size: int", "attempts: int", "flip_stream: int", "area_min: float", "area_max: float",
                    "aspect_min: float", "aspect_max: float", "covered: float", "flip: bool",
                    "half_pixel_centers: bool"});
  define_kernel("G16SmallBoxes", create_boxes, compute_boxes, destroy_boxes);
}

__attribute__((constructor)) void define_all() {
  define("G16NormActivation", {"x: T", "gamma: float", "beta: float", "centre: float", "scale: float"},
         {"y: T", "mean: float", "inv_std: float", "pooled: float"}, true, compute<float>, compute<BFloat16>);
  define("G16NormActivationGrad",
         {"dy: T", "dpooled: float", "x: T", "gamma: float", "beta: float", "centre: float", "scale: float",
          "mean: float", "inv_std: float"},
         {"dx: T", "dgamma: float", "dbeta: float", "dcentre: float", "dscale: float"}, true, compute_gradient<float>,
         compute_gradient<BFloat16>);
  define("G16Gate", {"x: T", "gate: float"}, {"y: T"}, false, compute_multiply<float>, compute_multiply<BFloat16>);
  define("G16GateGrad", {"dy: T", "x: T", "gate: float"}, {"dx: T", "dgate: float"}, false,
         compute_multiply_gradient<float>, compute_multiply_gradient<BFloat16>);
  define_proxy("G16ProxyMoments", {}, {"mean: float", "inv_std: float"}, compute_proxy);
  define_proxy("G16ProxyMomentsGrad", {"dmean: float", "dinv_std: float", "mean: float", "inv_std: float"},
               {"dgamma: float", "dbeta: float", "dproxy_gamma: float", "dproxy_beta: float"}, compute_proxy_gradient);
#if defined(G16_GROUP_CONV)
  define_conv("G16GroupConv", {"x: float", "kernel: float"}, {"y: float"}, compute_conv);
  define_conv("G16GroupConvGrad", {"dy: float", "x: float", "kernel: float"}, {"dx: float", "dkernel: float"},
              compute_conv_gradient);
#endif
  define_update();
  define_resize();
  define_small();
}

}  // namespace

// Called by g16net.native once, before the first use.
extern "C" void g16_set_threads(int threads) { Pool::get().resize(threads); }

// Numbers in a vector of the grouped convolution; 0 where the CPU has none that it can use.
extern "C" int g16_conv_vector() {
#if defined(__AVX512F__)
  return 16;
#elif defined(G16_GROUP_CONV)
  return 8;
#else
  return 0;
#endif
}
