// SPDX-License-Identifier: Apache-2.0
// JPEG as PIL's convert("RGB") gives it. libjpeg reports errors with longjmp, which skips
// destructors: the functions that call setjmp create no object with one.
#include <c10/util/Exception.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>

#include <jerror.h>
#include <jpeglib.h>

#include "support/images/decoders.h"

namespace images::detail {

namespace {

struct Errors {
  jpeg_error_mgr manager;  // first, so that libjpeg's pointer to it is a pointer to this
  jmp_buf jump;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void on_error(j_common_ptr common) {
  auto* errors = reinterpret_cast<Errors*>(common->err);
  (*common->err->format_message)(common, errors->message);
  longjmp(errors->jump, 1);
}

/// libjpeg only warns when the data ends too early, and fills the rest with grey.
void on_message(j_common_ptr common, int level) {
  const int code = common->err->msg_code;
  if (level < 0 && (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER)) {
    auto* errors = reinterpret_cast<Errors*>(common->err);
    std::strcpy(errors->message, "the file ends too early");
    longjmp(errors->jump, 1);
  }
}

/// Each scan of a progressive file goes through the whole picture again, however small the file is.
/// Encoders write about ten.
constexpr int kMostScans = 100;

void on_progress(j_common_ptr common) {
  const auto* info = reinterpret_cast<j_decompress_ptr>(common);
  if (info->input_scan_number <= kMostScans) return;
  auto* errors = reinterpret_cast<Errors*>(common->err);
  std::strcpy(errors->message, "it has more than 100 scans");
  longjmp(errors->jump, 1);
}

struct Reader {
  explicit Reader(const Bytes& bytes) {
    info.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = on_error;
    errors.manager.emit_message = on_message;
    jpeg_create_decompress(&info);
    progress.progress_monitor = on_progress;
    info.progress = &progress;
    // The parameter is not const in old versions of libjpeg.
    jpeg_mem_src(&info, const_cast<uint8_t*>(bytes.data()), bytes.size());
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() { jpeg_destroy_decompress(&info); }

  jpeg_decompress_struct info = {};
  jpeg_progress_mgr progress = {};
  Errors errors = {};
};

bool read_header(Reader& reader) {
  if (setjmp(reader.errors.jump)) return false;
  jpeg_read_header(&reader.info, TRUE);
  const bool four =
      reader.info.jpeg_color_space == JCS_CMYK || reader.info.jpeg_color_space == JCS_YCCK;
  reader.info.out_color_space = four ? JCS_CMYK : JCS_RGB;
  return true;
}

/// libjpeg leaves out the fine detail before it transforms the blocks: less work, and no less exact
/// than averaging afterwards.
void reduce(jpeg_decompress_struct& info, int64_t least) {
  constexpr int64_t kCoarsest = 8;
  const int64_t shorter = std::min(info.image_width, info.image_height);
  int64_t divisor = 1;
  while (least > 0 && divisor < kCoarsest && shorter / (2 * divisor) >= least) divisor *= 2;
  info.scale_num = 1;
  info.scale_denom = static_cast<unsigned>(divisor);
}

bool read_rows(Reader& reader, uint8_t* out, std::size_t row_bytes) {
  if (setjmp(reader.errors.jump)) return false;
  jpeg_start_decompress(&reader.info);
  while (reader.info.output_scanline < reader.info.output_height) {
    JSAMPROW row = out + reader.info.output_scanline * row_bytes;
    jpeg_read_scanlines(&reader.info, &row, 1);
  }
  return true;
}

/// Inks to light, where 255 is no ink, as Adobe writes them: PIL's rounding of (1 - c)(1 - k).
void cmyk_to_rgb(const Bytes& cmyk, Image& image) {
  for (std::size_t i = 0; i < cmyk.size() / 4; ++i) {
    const int white = cmyk[4 * i + 3];
    for (std::size_t channel = 0; channel < 3; ++channel) {
      const int product = (255 - cmyk[4 * i + channel]) * white + 128;
      image.pixels[3 * i + channel] =
          static_cast<uint8_t>(white - ((product + (product >> 8)) >> 8));
    }
  }
}

int orientation_of(const jpeg_decompress_struct& info) {
  constexpr const char* kXmp = "http://ns.adobe.com/xap/1.0/";
  int by_xmp = 1;
  for (auto* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.rfind(kXmp, 0) == 0) by_xmp = xmp_orientation(data);
    if (data.size() <= 6 || data.compare(0, 6, std::string("Exif\0\0", 6)) != 0) continue;
    const int found = exif_orientation(marker->data, marker->data_length);
    if (found != 1) return found;
  }
  return by_xmp;
}

}  // namespace

Decoded decode_jpeg(const Bytes& bytes, int64_t least) {
  Reader reader(bytes);
  TORCH_CHECK(read_header(reader), reader.errors.message);
  const int64_t full_width = reader.info.image_width, full_height = reader.info.image_height;
  check_size(full_width, full_height);
  reduce(reader.info, least);
  jpeg_calc_output_dimensions(&reader.info);
  const int64_t width = reader.info.output_width, height = reader.info.output_height;
  Decoded result{Image(width, height), orientation_of(reader.info), full_width, full_height};
  const bool four = reader.info.out_color_space == JCS_CMYK;
  Bytes cmyk(four ? static_cast<std::size_t>(width * height * 4) : 0);
  uint8_t* out = four ? cmyk.data() : result.image.pixels.data();
  const auto row_bytes = static_cast<std::size_t>(width * (four ? 4 : 3));
  TORCH_CHECK(read_rows(reader, out, row_bytes), reader.errors.message);
  if (four) cmyk_to_rgb(cmyk, result.image);
  return result;
}

}  // namespace images::detail
