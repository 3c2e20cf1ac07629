// Runs an exported detector on an image, without Python: serve EXPORTED_FOLDER IMAGE
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <vector>

int main(int, char** argv) {
  const std::string folder = argv[1];
  const auto about = nlohmann::json::parse(std::ifstream(folder + "/export.json"));
  const auto step = about["input"]["steps"][0];
  if (about["input"]["steps"].size() != 1 || step.value("rule", "") != "scale" || !step.value("keep_ratio", false) ||
      step.value("interpolation", "") != "bilinear") {
    std::fputs("this example knows one step, a resizing that keeps the ratio\n", stderr);
    return 1;
  }
  const cv::Mat image = cv::imread(argv[2]);
  const double a = step["size"][0], b = step["size"][1];
  const double factor = std::min(std::max(a, b) / std::max(image.rows, image.cols),
                                 std::min(a, b) / std::min(image.rows, image.cols));
  cv::Mat resized, padded;
  cv::resize(image, resized, {int(image.cols * factor + 0.5), int(image.rows * factor + 0.5)});
  int chosen = -1, height = 0, width = 0;  // the smallest size that holds the image
  for (int i = 0; i < int(about["sizes"].size()); ++i) {
    const int h = about["sizes"][i][0], w = about["sizes"][i][1];
    if (h >= resized.rows && w >= resized.cols && (chosen < 0 || h * w < height * width)) {
      chosen = i, height = h, width = w;
    }
  }
  resized.convertTo(resized, CV_32F);
  const std::vector<double> fill = about["input"]["fill"];
  cv::copyMakeBorder(resized, padded, 0, height - resized.rows, 0, width - resized.cols, cv::BORDER_CONSTANT,
                     {fill[0], fill[1], fill[2]});
  std::vector<float> pixels(3 * height * width);
  std::vector<cv::Mat> channels;
  for (int c = 0; c < 3; ++c) channels.emplace_back(height, width, CV_32F, &pixels[c * height * width]);
  cv::split(padded, channels);

  Ort::Env env;
  const std::string file = folder + "/" + about["files"]["onnx"][chosen].get<std::string>();
  Ort::Session session(env, file.c_str(), Ort::SessionOptions());
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  float size[] = {float(resized.rows), float(resized.cols)};
  const int64_t shape[] = {1, 3, height, width}, two[] = {2};
  Ort::Value values[] = {Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape, 4),
                         Ort::Value::CreateTensor<float>(memory, size, 2, two, 1)};
  const char *inputs[] = {"image", "image_size"}, *outputs[] = {"boxes", "scores", "labels"};
  const auto found = session.Run(Ort::RunOptions(), inputs, values, 2, outputs, 3);
  const float *boxes = found[0].GetTensorData<float>(), *scores = found[1].GetTensorData<float>();
  const int64_t* labels = found[2].GetTensorData<int64_t>();
  const double x = double(resized.cols) / image.cols, y = double(resized.rows) / image.rows;
  for (size_t i = 0; i < found[1].GetTensorTypeAndShapeInfo().GetElementCount(); ++i) {
    if (scores[i] < 0.3f) continue;
    const std::string name = about["classes"][labels[i]];
    std::printf("%s %.3f %.1f %.1f %.1f %.1f\n", name.c_str(), scores[i], boxes[4 * i] / x, boxes[4 * i + 1] / y,
                boxes[4 * i + 2] / x, boxes[4 * i + 3] / y);
  }
}
