<?php
// Tells the three paths by which PHP programs find out what to do.
header('Content-Type: application/json');
$uri = rawurldecode(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
echo json_encode([$uri, $_SERVER['PATH_INFO'] ?? '', $_SERVER['SCRIPT_NAME']], JSON_UNESCAPED_SLASHES);
