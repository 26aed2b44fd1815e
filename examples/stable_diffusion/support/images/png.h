// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>

#include "support/images/image.h"

namespace images {

/// Texts in a PNG file by keyword, in UTF-8.
using PngText = std::map<std::string, std::string>;

/// Whether a name ends in ".png", in small or capital letters.
bool ends_as_png(const std::string& path);

/// Errors: c10::ValueError if a name that `save_png` shall write ends as another format's, ".JPG" or
/// ".webp" say
void check_png_name(const std::string& path);

/// Writes an 8-bit RGB PNG with text chunks: tEXt for what Latin-1 can hold, iTXt (UTF-8) for the
/// rest. The file appears as a whole or not at all, and equal input gives equal bytes. Bytes of a
/// text that are not UTF-8 become U+FFFD, since the arguments of a program can hold anything.
/// Errors: c10::ValueError for an empty picture, or a keyword that is not 1 to 79 printable ASCII
/// characters without a space at either end; c10::Error if the folder is missing or not
/// writable, or the disk is full
void save_png(const std::string& path, const Image& image, const PngText& text = {});

/// The text chunks of a PNG file (tEXt, zTXt and iTXt), also those behind the picture.
/// Errors: c10::Error if the file is missing, no PNG, or damaged
PngText read_png_text(const std::string& path);

}  // namespace images
