// Package internet is what the test cluster takes for the internet: origin
// servers on documentation addresses (RFC 5737), DNS servers, and a log of
// everything that reached them, which is what tests assert on.
//
// Every host in Hosts serves HTTP on 80 and 8080, HTTPS on 443 and 8443 (a
// certificate of the test authority for whatever name is asked), TCP echo on
// 7, 22 and 5432, and UDP echo on 7 and 443. See Handler for the paths.
package internet
